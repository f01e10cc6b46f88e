"""Replay every recorded rank table to pods of the test bed, at the recorded times, through mounted ConfigMaps."""

import json
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.support import ranktable_reader
from tests.cluster.support.ranktable_histories import PODS, Change, History, Role, histories
from tests.cluster.support.terminal import own_namespace
from tests.cluster.support.waiting import until
from tests.cluster.testbed.api import Api
from tests.cluster.testbed.artifacts import images
from tests.cluster.testbed.cluster import Cluster

HISTORIES = histories()
WAVES = (0, 1)
FIRST_PORT = 30_000
LOOK_EVERY_S = 1.0
INITIAL_S = 0.1
"""Changes up to this time are made before the pods start."""

Output = dict[str, list[dict[str, Any]]]


def test_there_are_histories_of_both_waves_and_nodes() -> None:
    assert len(HISTORIES) > 50
    assert {role.wave for history in HISTORIES for role in history.roles.values()} == set(WAVES)
    assert {role.node for history in HISTORIES for role in history.roles.values()} == {1, 2}


def _volume(case: str) -> str:
    return case.lower().replace(".", "-")


@dataclass
class ReplayNamespace:
    """A namespace in which the histories are replayed: first the pods of one wave, then the pods of the next."""

    cluster: Cluster
    namespace: str
    api: Api
    real_values: dict[str, str] = field(default_factory=dict)
    """The test bed's addresses and UIDs by history and recorded value."""

    def replay(self, wave: int) -> Output:
        """Replay a wave and return all output of its pods; the ConfigMaps are as the previous wave left them."""
        changes = [(history, change) for history in HISTORIES for change in history.changes if change.wave == wave]
        self._write((history, change) for history, change in changes if change.at_s <= INITIAL_S)
        self._create_pods(wave)
        started = time.monotonic()
        for history, change in sorted(changes, key=lambda pair: pair[1].at_s):
            if change.at_s > INITIAL_S:
                time.sleep(max(0.0, started + change.at_s - time.monotonic()))
                self._write([(history, change)])
        return self._read_output(wave)

    def end(self, wave: int) -> None:
        self.cluster.kubectl(
            "delete", "pods", f"--selector=wave={wave}", *self._namespace_words, "--now", "--wait=false"
        )

    @property
    def _namespace_words(self) -> tuple[str, str]:
        return ("--namespace", self.namespace)

    def _write(self, changes: Iterable[tuple[History, Change]]) -> None:
        """Write the changes into the ConfigMaps, with the test bed's addresses and UIDs."""
        created = []
        for history, change in changes:
            name = _volume(history.case)
            if change.data is None:
                self.cluster.kubectl("delete", "configmap", name, *self._namespace_words)
                continue
            data = {key: self._replaced(history, text) for key, text in change.data.items()}
            if change.is_creation:
                metadata = {"name": name, "namespace": self.namespace}
                created.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
            else:
                self.api.merge(f"/api/v1/namespaces/{self.namespace}/configmaps/{name}", {"data": data})
        if created:
            self.cluster.create(*created)

    def _replaced(self, history: History, text: str) -> str:
        """Replace all recorded values in one pass, because a recorded address can be the real one of another pod."""
        return re.sub(
            r'"([^"]*)"', lambda word: f'"{self.real_values.get(f"{history.case} {word[1]}", word[1])}"', text
        )

    def _create_pods(self, wave: int) -> None:
        """Create the pods of a wave and record their addresses and UIDs.

        Each pod takes a part in many histories, at most one in each.
        """
        parts: dict[str, dict[str, tuple[History, Role]]] = defaultdict(dict)
        for history in HISTORIES:
            for role in history.roles.values():
                if role.wave == wave:
                    on_node = sum(f"-node{role.node}-" in pod and history.case in cases for pod, cases in parts.items())
                    parts[f"wave{wave}-node{role.node}-{on_node}"][history.case] = (history, role)
        self.cluster.create(*(self._pod(name, wave, cases) for name, cases in parts.items()))
        self.cluster.kubectl(
            "wait", "pods", f"--selector=wave={wave}", "--for=condition=Ready", *self._namespace_words, "--timeout=300s"
        )
        for name, cases in parts.items():
            pod = self.api.get(f"/api/v1/namespaces/{self.namespace}/pods/{name}")
            for case, (_, role) in cases.items():
                if PODS.fullmatch(role.ip):
                    self.real_values[f"{case} {role.ip}"] = pod["status"]["podIP"]
                if role.uid:
                    self.real_values[f"{case} {role.uid}"] = pod["metadata"]["uid"]

    def _pod(self, name: str, wave: int, cases: Mapping[str, tuple[History, Role]]) -> dict[str, Any]:
        roles = {
            f"{case} {role.ip}": {
                "volume": _volume(case),
                "chips": role.chips,
                "pod_name": role.pod_name,
                "port": FIRST_PORT + number,
            }
            for number, (case, (_, role)) in enumerate(cases.items())
        }
        fields = {"POD_UID": "metadata.uid", "POD_IP": "status.podIP", "HOST_IP": "status.hostIP"}
        references = [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()]
        volumes = [_volume(case) for case in cases]
        container = {
            "name": "reader",
            "image": images.TRAINER,
            "imagePullPolicy": "Never",
            "command": ["python", "-c", Path(ranktable_reader.__file__).read_text()],
            "env": [{"name": "ROLES", "value": json.dumps(roles)}, *references],
            "volumeMounts": [
                {"name": "tmp", "mountPath": "/tmp"},
                *({"name": volume, "mountPath": f"/tables/{volume}"} for volume in volumes),
            ],
        }
        spec = {
            "containers": [container],
            # A ConfigMap can be created after the pods.
            "volumes": [
                {"name": "tmp", "emptyDir": {}},
                *({"name": volume, "configMap": {"name": volume, "optional": True}} for volume in volumes),
            ],
            "nodeSelector": {"kubernetes.io/hostname": name.split("-")[1]},
            "terminationGracePeriodSeconds": 0,
        }
        metadata = {"name": name, "namespace": self.namespace, "labels": {"wave": str(wave)}}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}

    def _read_output(self, wave: int) -> Output:
        """Return the output of all pods once it is complete."""
        # A kubelet updates a volume when it syncs its pod: every 10 to 15 s, or at once after a change of the pod.
        self.cluster.kubectl("annotate", "pods", f"--selector=wave={wave}", "look=now", *self._namespace_words)
        output: Output = {}

        def waiting() -> list[str]:
            output.clear()
            log = self.cluster.kubectl("logs", f"--selector=wave={wave}", "--tail=-1", *self._namespace_words)
            for line in map(json.loads, log.splitlines()):
                output.setdefault(line["role"], []).append(line)
            roles = {f"{h.case} {r.ip}": r for h in HISTORIES for r in h.roles.values() if r.wave == wave}
            return [
                f"{name}: {output.get(name)}" for name, role in roles.items() if not _is_final(role, output.get(name))
            ]

        until(lambda: not waiting(), lambda: "\n".join(waiting()), every_s=LOOK_EVERY_S)
        return output


def _is_final(role: Role, output: list[dict[str, Any]] | None) -> bool:
    """Return whether the pod has its place, or has reported the final reason why not."""
    if not output:
        return False
    last = output[-1]
    return "waits" not in last or (bool(role.reason) and role.reason in str(last["waits"]))


@pytest.fixture(scope="module")
def played(cluster: Cluster) -> Iterator[tuple[ReplayNamespace, list[Output]]]:
    """Replay all histories."""
    cluster.inside("nodes with the recorded addresses")
    with own_namespace(cluster) as name, closing(Api(cluster.kubeconfig)) as api:
        namespace = ReplayNamespace(cluster, name, api)
        outputs = []
        for wave in WAVES:
            outputs.append(namespace.replay(wave))
            namespace.end(wave)
        yield namespace, outputs


@pytest.mark.parametrize("history", HISTORIES, ids=lambda history: history.case)
def test_replayed_pods_get_the_recorded_ranks_and_devices_or_the_recorded_reason(
    played: tuple[ReplayNamespace, list[Output]], history: History
) -> None:
    namespace, outputs = played
    for role in history.roles.values():
        *before, last = outputs[role.wave][f"{history.case} {role.ip}"]
        assert all("waits" in line for line in before)
        if role.reason:
            assert "found" not in last
            assert role.reason in str(last.get("refused", last.get("waits")))
            continue
        assert last["found"] == {
            "workers": [
                [rank, place, chip] for place, (rank, chip) in enumerate(zip(role.ranks, role.chips, strict=True))
            ],
            "world_size": role.world_size,
            "node_rank": role.node_rank,
            "master": namespace.real_values.get(f"{history.case} {role.master}", role.master),
        }
        assert last["mounted_is_link"]
        assert last["copy_is_regular"], "HCCL ignores a symbolic link"
