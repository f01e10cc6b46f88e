"""Every published version of the rank table is read; a table that breaks a rule is refused with the field."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.ranktable.identity import Identity, find_me
from trainer.ranktable.table import NotJsonError, NotReadyError, RankedDevice, RankTable, Server, parse
from trainer.ranktable.wait import wait_until_completed, write_regular
from trainer.shared.errors import TrainerError, UsageError

Json = dict[str, Any]


def server_list(*counts: int, version: str = "1.0") -> Json:
    """Return a table of pods with these numbers of devices, each pod on a separate host."""
    servers, rank = [], 0
    for node, count in enumerate(counts):
        devices = []
        for device_id in range(count):
            devices.append(
                {"device_id": str(device_id), "device_ip": f"192.168.{node}.{device_id + 1}", "rank_id": str(rank)}
            )
            rank += 1
        servers.append(
            {
                "server_id": f"10.0.0.{node + 1}",
                "host_ip": f"10.0.0.{node + 1}",
                "container_ip": f"10.244.0.{node + 1}",
                "device": devices,
            }
        )
    return {"status": "completed", "version": version, "server_count": str(len(counts)), "server_list": servers}


def super_pods(*counts: int) -> Json:
    table = server_list(*counts, version="1.2")
    for server in table["server_list"]:
        for device in server["device"]:
            device |= {"super_device_id": device["rank_id"], "device_ip": "-1"}
    members = [{"server_id": server["server_id"]} for server in table["server_list"]]
    return {**table, "super_pod_list": [{"super_pod_id": "0", "server_list": members}]}


def rank_list(*counts: int) -> Json:
    ranks: list[Json] = []
    for node, count in enumerate(counts):
        for local_id in range(count):
            layers = [{"net_layer": 1, "net_instance_id": "az0"}, {"net_layer": 0, "net_instance_id": f"rack{node}"}]
            ranks.append({"rank_id": len(ranks), "local_id": local_id, "device_id": local_id, "level_list": layers})
    return {"status": "completed", "version": "2.0", "rank_count": len(ranks), "rank_list": ranks}


def group_list(*counts: int) -> Json:
    instances = [
        {
            "pod_name": f"job-worker-{node}",
            "server_id": f"10.0.0.{node + 1}",
            "devices": [{"device_id": str(i), "device_ip": f"192.168.{node}.{i + 1}"} for i in range(count)],
        }
        for node, count in enumerate(counts)
    ]
    group = {
        "group_name": "worker",
        "instance_count": str(len(counts)),
        "device_count": str(sum(counts)),
        "instance_list": list(reversed(instances)),  # the controller's order is arbitrary
    }
    return {"status": "completed", "group_count": "1", "group_list": [group]}


FORMATS: dict[str, Callable[..., Json]] = {
    "1.0": server_list,
    "1.2": super_pods,
    "2.0": rank_list,
    "group_list": group_list,
}
shapes = st.lists(st.integers(1, 8), min_size=1, max_size=12)


def test_a_table_is_read_field_by_field() -> None:
    devices = tuple(RankedDevice(rank, rank, f"192.168.0.{rank + 1}") for rank in range(2))
    assert parse(json.dumps(server_list(2))) == RankTable(
        "1.0", "completed", (Server("10.0.0.1", "10.0.0.1", "10.244.0.1", None, devices),)
    )


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(version=st.sampled_from(sorted(FORMATS)), counts=shapes)
def test_every_version_is_read_with_its_servers_in_the_order_of_ranks(version: str, counts: list[int]) -> None:
    table = parse(json.dumps(FORMATS[version](*counts)))
    assert table.version == version
    assert [len(server.devices) for server in table.servers] == counts
    assert [device.rank for server in table.servers for device in server.devices] == list(range(sum(counts)))
    assert [device.device_id for server in table.servers for device in server.devices] == [
        i for count in counts for i in range(count)
    ]


def places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in children for place in places(child, (*path, key)))]


words = st.sampled_from(["", "-1", "0", "1", "1.0", "2.0", "10.0.0.1", "x" * 99, "a\nb", "\ud800", "\u0663"])
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=4,
)


def refusal(text: str) -> str | None:
    """Return why a text is refused; None if it is read."""
    try:
        parse(text)
    except UsageError as error:
        return str(error)
    return None


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), version=st.sampled_from(sorted(FORMATS)))
def test_a_damaged_table_is_read_or_refused_in_one_line_and_never_crashes(data: st.DataObject, version: str) -> None:
    table: Any = FORMATS[version](2, 3)
    *above, key = data.draw(st.sampled_from(places(table)[1:]))
    parent = copy.deepcopy(table)
    damaged = parent
    for step in above:
        parent = parent[step]
    if data.draw(st.booleans()):
        parent[key] = data.draw(anything)
    else:
        del parent[key]
    text = json.dumps(damaged)
    cut = data.draw(st.integers(0, len(text)))
    for reason in (refusal(text), refusal(text[:cut])):
        assert reason is None or (reason.isprintable() and len(reason) < 300)


def changed(table: Json, *path: str | int, to: Any) -> Json:
    """Return the table with the value at `path` replaced, or removed if `to` is `...`."""
    table = copy.deepcopy(table)
    parent: Any = table
    for key in path[:-1]:
        parent = parent[key]
    if to is ...:
        del parent[path[-1]]
    else:
        parent[path[-1]] = to
    return table


DEVICE = ("server_list", 0, "device", 1)
POD: list[Json] = super_pods(2)["super_pod_list"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([], "the table is []: must be a JSON object"),
        (changed(server_list(2), "version", to="3.0"), 'version "3.0" is not one of 1.0, 1.2, 2.0'),
        (changed(server_list(2), "version", to=...), "version is missing"),
        (changed(server_list(2), "status", to=...), "status is missing"),
        (changed(server_list(2), "server_list", to={}), "server_list is {}: must be a list with at least one entry"),
        (changed(server_list(2), "server_count", to="2"), 'server_count "2" is not the number of server_list'),
        (changed(server_list(2), "server_count", to=1), "server_count is 1: must be a string"),
        (
            changed(server_list(2), *DEVICE, "rank_id", to="0"),
            "rank_id 0 appears 2 times; every rank appears once",
        ),
        (changed(server_list(2), *DEVICE, "rank_id", to="2"), "rank_id 2 is not below the number of devices, 2"),
        (
            changed(server_list(2), *DEVICE, "rank_id", to="one"),
            'server_list[0].device[1].rank_id is "one": must be a number in quotes, like "0"',
        ),
        (changed(server_list(2), *DEVICE, "device_id", to="0"), "device_id 0 appears 2 times"),
        (changed(server_list(2), *DEVICE, "device_ip", to="192.168.0.1"), 'device_ip "192.168.0.1" appears 2 times'),
        (changed(server_list(2), *DEVICE, "device_ip", to="-1"), 'device[1].device_ip "-1" is not an IP address'),
        (changed(server_list(2), *DEVICE, "device_ip", to=""), 'device[1].device_ip "" is not an IP address'),
        (changed(server_list(2, 2), *DEVICE, "device_ip", to=...), "server_list[0].device[1].device_ip is missing"),
        (
            changed(server_list(2), "server_list", 0, "container_ip", to="pod"),
            'container_ip "pod" is not an IP address',
        ),
        (
            changed(server_list(2), "server_list", 0, "container_ip", to="fe80::1%\n"),
            'container_ip "fe80::1%\\n" is not an IP address',
        ),
        (changed(server_list(2), "server_list", 0, "server_id", to="x" * 65), "must be a name of 1 to 64 characters"),
        (changed(super_pods(2), *DEVICE, "super_device_id", to=...), "device[1].super_device_id is missing"),
        (
            changed(super_pods(2), "super_pod_list", 0, "server_list", 0, "server_id", to="other"),
            'server_id "10.0.0.1" is in no super_pod_list entry',
        ),
        (
            changed(super_pods(2), "super_pod_list", to=[*POD, {**POD[0], "super_pod_id": "1"}]),
            'super_pod_list[1].server_list[0].server_id is "10.0.0.1": must be in one super pod',
        ),
        (changed(super_pods(2), "super_pod_list", to=POD * 2), 'super_pod_id "0" appears 2 times'),
        (changed(super_pods(2), "super_pod_list", 0, "super_pod_id", to=...), "super_pod_id is missing"),
        (changed(super_pods(2, 2), *DEVICE, "super_device_id", to="3"), "super_device_id 3 appears 2 times"),
        (changed(server_list(2), *DEVICE, "rank_id", to="01"), 'rank_id is "01": must be a number in quotes'),
        (changed(super_pods(2), "super_pod_list", to=...), "super_pod_list is missing"),
        (changed(rank_list(2), "rank_count", to=3), "rank_count 3 is not the number of rank_list entries, 2"),
        (changed(rank_list(2), "rank_count", to=...), "rank_count is missing"),
        (changed(rank_list(2), "rank_list", 1, "local_id", to=...), "rank_list[1].local_id is missing"),
        (changed(rank_list(2), "rank_list", 1, "rank_id", to="1"), "must be a number of at least 0, without quotes"),
        (
            changed(rank_list(2), "rank_list", 1, "level_list", 1, "net_instance_id", to=...),
            "rank_list[1].level_list[1].net_instance_id is missing",
        ),
        (changed(group_list(2), "group_list", 0, "instance_count", to="2"), 'instance_count "2" is not the number'),
        (changed(group_list(2), "group_list", 0, "device_count", to="4"), 'device_count "4" is not the number'),
        (
            changed(group_list(2, 2), "group_list", 0, "instance_list", 0, "pod_name", to="job-worker-0"),
            'pod_name "job-worker-0" appears 2 times',
        ),
    ],
)
def test_a_refusal_names_the_field_the_value_and_the_rule(table: Any, message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(json.dumps(table))
    assert message in str(error.value)
    assert not isinstance(error.value, NotReadyError)


def test_ranks_that_are_interleaved_between_servers_are_refused() -> None:
    table = server_list(2, 2)
    first, second = (server["device"] for server in table["server_list"])
    first[1]["rank_id"], second[0]["rank_id"] = "2", "1"
    with pytest.raises(UsageError, match="must follow each other without a gap"):
        parse(json.dumps(table))


WHOLE = json.dumps({**server_list(2), "more": [True, False, None, -7, "\u20ac\n\\"]}, indent=1)
BROKEN = WHOLE.replace('"completed",', '"completed", // usable')


def test_every_beginning_of_a_table_and_one_that_is_initializing_are_not_ready() -> None:
    beginnings = [WHOLE[:length] for length in range(len(WHOLE) - 1)]
    for text in (*beginnings, "\0" * 40, WHOLE[:99] + "\0" * 40, '{"status":"initializing"}'):
        with pytest.raises(NotReadyError):
            parse(text)


@pytest.mark.parametrize("depth", [*range(800, 1000, 10), 100_000])
def test_a_table_that_is_nested_deeply_is_refused(depth: int) -> None:
    with pytest.raises(UsageError, match=r"not a rank table|must be a"):
        parse('{"status":' + "[" * depth + "]" * depth + "}")


def test_ten_workers_of_a_group_list_keep_their_numeric_order() -> None:
    table = parse(json.dumps(group_list(*[1] * 12)))
    assert [server.pod_name for server in table.servers] == [f"job-worker-{i}" for i in range(12)]


def test_a_pod_finds_itself_in_a_2_0_table_by_node_rank_because_it_names_no_pods() -> None:
    table = parse(json.dumps(rank_list(2, 2)))
    server = find_me(table, Identity(pod_ip="10.244.0.9", node_rank=1))
    assert [device.rank for device in server.devices] == [2, 3]
    with pytest.raises(UsageError, match="cannot tell which of the table's 2 servers this is"):
        find_me(table, Identity(pod_ip="10.244.0.9"))


def test_identity_comes_from_the_variables_of_the_manifests() -> None:
    environ = {"POD_UID": "u", "POD_IP": "10.1.1.1", "POD_NAME": "w-0", "XDL_IP": "10.0.0.1", "HOST_IP": ""}
    assert Identity.from_environ(environ) == Identity("u", "10.1.1.1", "w-0", "10.0.0.1")


class Volume:
    """A file that changes at each poll; a fake clock advances, so that nothing really waits."""

    def __init__(self, path: Path, *contents: str | None) -> None:
        self.path, self._contents, self.time, self.statuses = path, list(contents), 0.0, list[str]()
        self._show()

    def _show(self) -> None:
        if self._contents and (content := self._contents.pop(0)) is not None:
            self.path.write_text(content)

    def wait(self, *, expected: int | None = None, me: Identity | None = None, timeout_s: float = 100.0) -> RankTable:
        def sleep(seconds: float) -> None:
            self.time += seconds
            self._show()

        table, content = wait_until_completed(
            self.path,
            expected_devices=expected,
            identity=me or Identity(pod_ip="10.244.0.1"),
            timeout_s=timeout_s,
            clock=lambda: self.time,
            sleep=sleep,
            on_status=self.statuses.append,
        )
        assert content == self.path.read_bytes()
        return table


GOOD = json.dumps(server_list(2, 2))
OLD = GOOD.replace("10.244.0.", "10.244.9.")


def test_the_wait_continues_through_every_state_of_a_volume_before_the_right_table(tmp_path: Path) -> None:
    contents = [None, "", GOOD[:50], '{"status":"initializing"}', OLD, json.dumps(server_list(2)), GOOD]
    volume = Volume(tmp_path / "hccl.json", *contents)
    assert volume.wait(expected=4) == parse(GOOD)
    assert [status.split(": ", 1)[1][:24] for status in volume.statuses] == [
        "no such file",
        "not valid JSON at line 1",
        "not valid JSON at line 1",
        'status is "initializing"',
        "the table does not conta",
        "it has 2 devices, not 4 ",
    ]


def test_the_wait_continues_while_the_volume_has_an_invalid_table_of_an_earlier_job(tmp_path: Path) -> None:
    volume = Volume(tmp_path / "hccl.json", OLD.replace('"rank_id": "1"', '"rank_id": "0"'), GOOD)
    assert volume.wait() == parse(GOOD)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\ufeff" + WHOLE, "byte order mark"),
        (WHOLE.encode("utf-16").decode(errors="replace"), "byte order mark"),
        (BROKEN, "not valid JSON at line 2 column 25 "),
        (WHOLE.replace("\n", " # a comment\n", 1), "not valid JSON at line 1 column 3 "),
        (WHOLE[:-1] + ",}", "not valid JSON at line "),
        (WHOLE + "}", "not valid JSON at line "),
        ("status: completed", "not valid JSON at line 1 column 1 "),
        ("{'status': 'completed'}", "not valid JSON at line 1 column 2 "),
        (WHOLE.replace("completed", "comp\nleted"), "not valid JSON at line 2 column "),
        (WHOLE.replace("completed", r"\u12"), "not valid JSON at line 2 column "),
    ],
)
def test_a_text_that_never_becomes_json_is_refused_at_once(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(NotJsonError):
        parse(text)
    volume = Volume(tmp_path / "hccl.json", text)
    with pytest.raises(UsageError, match=message) as error:
        volume.wait(me=Identity(pod_uid="another"))
    assert str(error.value).isprintable()
    assert volume.time == 0


@pytest.mark.parametrize("me", [Identity(pod_ip="10.244.0.1"), Identity()])
def test_an_invalid_table_of_this_job_is_refused_at_once(tmp_path: Path, me: Identity) -> None:
    volume = Volume(tmp_path / "hccl.json", GOOD.replace('"rank_id": "1"', '"rank_id": "0"'))
    with pytest.raises(UsageError, match=r"hccl\.json: rank_id 0 appears 2 times"):
        volume.wait(me=me)
    assert volume.time == 0


def test_the_timeout_reports_the_last_problem(tmp_path: Path) -> None:
    volume = Volume(tmp_path / "hccl.json", OLD)
    with pytest.raises(
        TrainerError, match=r"not completed within 5 s: the table does not contain this pod: .*10\.244\.9\.1"
    ) as error:
        volume.wait(timeout_s=5)
    assert error.value.exit_code == 1, "exit code 2 would end a job before its retries"
    assert len(volume.statuses) == 1


def test_a_table_that_cannot_be_read_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "hccl.json").mkdir()
    volume = Volume(tmp_path / "hccl.json")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        volume.wait()


def test_a_table_becomes_a_regular_file_that_only_the_owner_reads(tmp_path: Path) -> None:
    (tmp_path / "copy.json").symlink_to(tmp_path / "elsewhere")
    for _ in range(2):  # a restarted worker replaces the first copy
        copied = write_regular(GOOD.encode(), tmp_path / "copy.json")
    assert copied == tmp_path / "copy.json"
    assert not copied.is_symlink()
    assert copied.stat().st_mode & 0o777 == 0o400
    assert copied.read_text() == GOOD
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.json"]


def test_a_copy_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be copied to .*nowhere.*: No such file"):
        write_regular(GOOD.encode(), tmp_path / "nowhere" / "hccl.json")
