"""Every recorded table of MindCluster's controllers is read correctly, or refused for the right reason."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trainer.ranktable.identity import Identity, find_me
from trainer.ranktable.table import NotReadyError, RankTable, parse
from trainer.shared.errors import UsageError

RECORDED = Path(__file__).parents[2] / "data" / "ranktables"
INIT = "initializing"

# The expected result of each table of a file, in the file's order: INIT, the refusal, or the ranks of each server.
EXPECTED: dict[str, list[str]] = {
    "hccl-controller-6.0.RC3-v1-vc-1x8": [
        INIT,
        "0-7@vc-1x8-worker-0",
        INIT,
        "refused: instance_count",
        "refused: instance_count",
    ],
    "hccl-controller-6.0.RC3-v1-vc-2x4": [
        INIT,
        "0-3@vc-2x4-worker-0 4-7@vc-2x4-worker-1",
        INIT,
        "refused: instance_count",
        "refused: instance_count",
    ],
    "hccl-controller-6.0.RC3-v2-2nodes-2x8": [INIT, "0-7@10.244.1.43 8-15@10.244.0.15"],
    "hccl-controller-6.0.RC3-v2-cm-after-annotation": [INIT, "0-7@10.244.0.16"],
    "hccl-controller-6.0.RC3-v2-cm-empty-data": [],
    "hccl-controller-6.0.RC3-v2-cm-without-label": [INIT, INIT],
    "hccl-controller-6.0.RC3-v2-device-ip-minus1": [INIT],
    "hccl-controller-6.0.RC3-v2-label-value-310": [INIT],
    "hccl-controller-6.0.RC3-v2-limits-only": [INIT, "0-7@10.244.0.23"],
    "hccl-controller-6.0.RC3-v2-no-env-plugin": [INIT],
    "hccl-controller-6.0.RC3-v2-pod-template-without-label": [INIT],
    "hccl-controller-6.0.RC3-v2-server-id-is-uid": [INIT],
    "hccl-controller-6.0.RC3-v2-vc-1x8": [INIT, "0-7@10.244.0.10", INIT, "0-7@10.244.1.40", "0-7@10.244.1.40"],
    "hccl-controller-6.0.RC3-v2-vc-2x4": [
        INIT,
        "0-3@10.244.0.11 4-7@10.244.1.41",
        INIT,
        "0-3@10.244.1.42 4-7@10.244.0.12",
        "0-3@10.244.1.42 4-7@10.244.0.12",
    ],
    "op-7.2.RC1-cm-without-label": [INIT, "0-7@10.244.0.3"],
    "op-7.2.RC1-old-device-plugin-two-pods-one-node": [INIT, "0-3@10.244.0.252 4-7@10.244.0.253"],
    "op-7.2.RC1-vc-1x8": [INIT, "0-7@10.244.1.36", INIT, "0-7@10.244.0.249", "0-7@10.244.0.249"],
    "op-7.2.RC1-vc-2x4": [
        INIT,
        "0-3@10.244.0.250 4-7@10.244.1.37",
        INIT,
        "0-3@10.244.0.251 4-7@10.244.1.38",
        "0-3@10.244.0.251 4-7@10.244.1.38",
    ],
    "op-7.3.0-cm-after-annotation": [INIT, INIT, INIT],
    "op-7.3.0-cm-without-label": [INIT, "0-7@10.244.1.31"],
    "op-7.3.0-device-ip-minus1-then-good": [
        INIT,
        'refused: device_ip "-1" is not an IP address',
        'refused: device_ip "-1" is not an IP address',
    ],
    "op-7.3.0-limits-only": [INIT],
    "op-7.3.0-one-pod-replaced-no-hcclrank": [INIT, "0-3@10.244.0.4 4-7@10.244.0.5", INIT],
    "op-7.3.0-vc-2x4": [
        INIT,
        "0-3@10.244.0.241 4-7@10.244.1.28",
        INIT,
        "0-3@10.244.0.242 4-7@10.244.1.29",
        "0-3@10.244.0.242 4-7@10.244.1.29",
    ],
    "op-HEAD-2nodes-2x8-old-device-plugin": [INIT, 'refused: server_id is ""'],
    "op-HEAD-2nodes-2x8": [INIT, "0-7@10.244.1.21 8-15@10.244.0.225"],
    "op-HEAD-acjob-1x8": [INIT, "0-7@10.244.1.24"],
    "op-HEAD-acjob-2x4": [
        INIT,
        "0-3@10.244.0.230 4-7@10.244.0.229",
        INIT,
        "0-3@10.244.0.230 4-7@10.244.0.231",
        INIT,
        "0-3@10.244.0.230 4-7@10.244.0.231",
    ],
    "op-HEAD-acjob-invalid": [],
    "op-HEAD-acjob-limits-only": [INIT, "0-7@10.244.1.53"],
    "op-HEAD-acjob-worker-fails": ["0-3@10.244.0.235 4-7@10.244.0.234"],
    "op-HEAD-annotation-changed-after-completed": [INIT, "0-7@10.244.0.221"],
    "op-HEAD-batchv1-job": [INIT],
    "op-HEAD-cm-after-annotation": [INIT, INIT, INIT],
    "op-HEAD-cm-after-job-before-annotation": [INIT, "0-7@10.244.1.10"],
    "op-HEAD-cm-applied-again-after-completed": [INIT, "0-7@10.244.1.51", INIT, INIT],
    "op-HEAD-cm-deleted-and-recreated": [INIT, "0-7@10.244.1.50", "0-7@10.244.1.50", INIT, INIT],
    "op-HEAD-cm-empty-data": ["0-7@10.244.1.14"],
    "op-HEAD-cm-immutable": [INIT],
    "op-HEAD-cm-left-over-completed": ["0-0@stale", "0-7@10.244.1.15", "0-0@stale"],
    "op-HEAD-cm-without-label": [INIT, "0-7@10.244.1.12"],
    "op-HEAD-controller-down-at-creation": [INIT, "0-7@10.244.1.27", INIT],
    "op-HEAD-controller-restart": [
        INIT,
        "0-3@10.244.0.239 4-7@10.244.0.240",
        "0-3@10.244.0.239 4-7@10.244.0.240",
        "0-3@10.244.0.239 4-7@10.244.0.240",
    ],
    "op-HEAD-deployment": [INIT, "0-7@10.244.0.237"],
    "op-HEAD-device-ip-empty": [INIT, 'refused: device_ip "" is not an IP address'],
    "op-HEAD-device-ip-minus1-then-good": [INIT, "0-7@10.244.0.210", INIT],
    "op-HEAD-extra-task-without-npu-hcclrank": [INIT, "0-7@10.244.1.16", "0-7@10.244.1.16"],
    "op-HEAD-extra-task-without-npu-no-hcclrank": ["refused: rank_id 8 is not below"],
    "op-HEAD-job-completed": [INIT, "0-7@10.244.1.52", "0-7@10.244.1.52"],
    "op-HEAD-job-without-label": [INIT],
    "op-HEAD-label-on-job-only-odd-value": [INIT, "0-7@10.244.1.13"],
    "op-HEAD-limits-only": [INIT],
    "op-HEAD-old-device-plugin-one-pod-per-node": [INIT, 'refused: server_id is ""'],
    "op-HEAD-old-device-plugin-two-pods-one-node": [INIT, "0-3@10.244.0.212 4-7@10.244.0.211"],
    "op-HEAD-one-of-two-annotated": [INIT, INIT],
    "op-HEAD-one-pod-replaced": [
        INIT,
        "0-3@10.244.0.222 4-7@10.244.0.223",
        INIT,
        "0-3@10.244.0.222 4-7@10.244.0.224",
        INIT,
    ],
    "op-HEAD-ranktable-volume-file": ["0-7@10.244.0.232", INIT, "0-7@10.244.0.233"],
    "op-HEAD-recreated-one-of-two-annotated": [
        INIT,
        "0-3@10.244.0.35 4-7@10.244.0.36",
        "0-3@10.244.0.35 4-7@10.244.0.36",
    ],
    "op-HEAD-vc-1x8": [INIT, "0-7@10.244.0.199", INIT, "0-7@10.244.0.200", "0-7@10.244.0.200"],
    "op-HEAD-vc-2x4-hcclrank": [
        INIT,
        "0-3@10.244.0.205 4-7@10.244.0.206",
        INIT,
        "0-3@10.244.0.208 4-7@10.244.0.207",
        "0-3@10.244.0.208 4-7@10.244.0.207",
    ],
    "op-HEAD-vc-2x4": [
        INIT,
        "0-3@10.244.0.202 4-7@10.244.0.201",
        INIT,
        "0-3@10.244.0.204 4-7@10.244.0.203",
        "0-3@10.244.0.204 4-7@10.244.0.203",
    ],
    "volcano-same-name-recreated-at-once-hangs": [],
}


def tables(value: Any) -> Iterator[str]:
    """Yield every table of a recorded document: the data of ConfigMaps, and files that `cat` printed."""
    if isinstance(value, dict):
        for item in value.values():
            yield from tables(item)
    elif isinstance(value, list):
        for item in value:
            yield from tables(item)
    elif isinstance(value, str):
        yield from (line for line in value.splitlines() if line.startswith('{"status"'))


def recorded(name: str) -> list[str]:
    return list(tables(json.loads((RECORDED / f"{name}.json").read_text())))


def outcome(text: str) -> str:
    try:
        table = parse(text)
    except NotReadyError:
        return INIT
    except UsageError as error:
        return f"refused: {error}"
    return " ".join(
        f"{devices[0].rank}-{devices[-1].rank}@{server.container_ip or server.pod_name or server.server_id}"
        for server in table.servers
        for devices in [server.devices]
    )


@pytest.mark.parametrize("name", EXPECTED)
def test_a_recorded_table_is_read_correctly_or_refused_for_the_right_reason(name: str) -> None:
    texts = recorded(name)
    assert len(texts) == len(EXPECTED[name])
    for text, expected in zip(texts, EXPECTED[name], strict=True):
        if expected.startswith("refused: "):
            assert outcome(text).startswith("refused: ")
            assert expected.removeprefix("refused: ") in outcome(text)
        else:
            assert outcome(text) == expected


def test_no_recorded_table_is_left_out() -> None:
    assert sorted(EXPECTED) == sorted(path.stem for path in RECORDED.glob("*.json"))


def completed(name: str, index: int) -> RankTable:
    return parse(recorded(name)[index])


@pytest.mark.parametrize(
    ("name", "index", "identity", "ranks"),
    [
        # Two pods on one host have different UIDs; worker-1 has rank 0.
        ("op-HEAD-vc-2x4", 1, Identity(pod_uid="0a895a9b-f17f-4824-a3f0-346c0a7804ea"), [4, 5, 6, 7]),
        ("op-HEAD-vc-2x4", 1, Identity(pod_ip="10.244.0.202", host_ip="10.123.0.1"), [0, 1, 2, 3]),
        # Two pods have the same server_id (operator 7.2): only their addresses differ.
        ("op-7.2.RC1-old-device-plugin-two-pods-one-node", 1, Identity(pod_ip="10.244.0.253"), [4, 5, 6, 7]),
        ("op-HEAD-2nodes-2x8", 1, Identity(host_ip="10.123.0.1"), [8, 9, 10, 11, 12, 13, 14, 15]),
        ("hccl-controller-6.0.RC3-v2-vc-2x4", 1, Identity(host_ip="10.123.0.2"), [4, 5, 6, 7]),
        ("hccl-controller-6.0.RC3-v1-vc-2x4", 1, Identity(pod_name="vc-2x4-worker-1"), [4, 5, 6, 7]),
    ],
)
def test_a_pod_finds_itself(name: str, index: int, identity: Identity, ranks: list[int]) -> None:
    assert [device.rank for device in find_me(completed(name, index), identity).devices] == ranks


@pytest.mark.parametrize(
    ("name", "index", "identity", "message"),
    [
        # Pods of the next job, with the same names on the same host, see the ended job's table.
        (
            "op-HEAD-recreated-one-of-two-annotated",
            1,
            Identity(pod_uid="11111111-2222-3333-4444-555555555555", pod_ip="10.244.0.37", host_ip="10.123.0.1"),
            "does not contain this pod",
        ),
        ("op-HEAD-cm-left-over-completed", 0, Identity(pod_ip="10.244.1.15"), "does not contain this pod"),
        # A new pod got the address of an ended pod, on the same host.
        (
            "op-HEAD-vc-2x4",
            1,
            Identity(pod_uid="11111111-2222-3333-4444-555555555555", pod_ip="10.244.0.202", host_ip="10.123.0.1"),
            "does not contain this pod",
        ),
        ("op-HEAD-vc-1x8", 1, Identity(pod_ip="10.244.0.200", host_ip="10.123.0.1"), "POD_IP=10.244.0.200"),
        ("op-HEAD-vc-2x4", 1, Identity(host_ip="10.123.0.1"), "2 entries that could be this pod"),
        ("op-HEAD-vc-2x4", 1, Identity(), "cannot tell which"),
    ],
)
def test_a_pod_that_is_not_in_the_table_is_refused(name: str, index: int, identity: Identity, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_me(completed(name, index), identity)
