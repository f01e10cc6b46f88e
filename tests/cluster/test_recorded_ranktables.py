"""Every recorded life of a rank table, played to pods of the bed in its recorded time, through mounted ConfigMaps."""

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
from tests.cluster.support.ranktable_histories import PODS, History, Role, Step, histories
from tests.cluster.support.terminal import own_namespace
from tests.cluster.support.waiting import until
from tests.cluster.testbed.api import Api
from tests.cluster.testbed.artifacts import images
from tests.cluster.testbed.cluster import Cluster

HISTORIES = histories()
WAVES = (0, 1)
FIRST_PORT = 30_000
LOOK_EVERY_S = 1.0
AT_ONCE_S = 0.1
"""Steps until then are what pods find when they come."""

Said = dict[str, list[dict[str, Any]]]


def test_there_are_histories_of_both_waves_and_nodes() -> None:
    assert len(HISTORIES) > 50
    assert {role.wave for history in HISTORIES for role in history.roles.values()} == set(WAVES)
    assert {role.node for history in HISTORIES for role in history.roles.values()} == {1, 2}


def _volume(case: str) -> str:
    return case.lower().replace(".", "-")


@dataclass
class Stage:
    """A namespace in which the histories are played: pods of one wave, then those of the next."""

    cluster: Cluster
    namespace: str
    api: Api
    real: dict[str, str] = field(default_factory=dict)
    """What is put in the place of a recorded pod's address and UID, by history."""

    def play(self, wave: int) -> Said:
        """Everything that the pods of this wave say; the ConfigMaps are as the wave before left them."""
        steps = [(history, step) for history in HISTORIES for step in history.steps if step.wave == wave]
        self._show((history, step) for history, step in steps if step.at_s <= AT_ONCE_S)
        self._pods(wave)
        started = time.monotonic()
        for history, step in sorted(steps, key=lambda one: one[1].at_s):
            if step.at_s > AT_ONCE_S:
                time.sleep(max(0.0, started + step.at_s - time.monotonic()))
                self._show([(history, step)])
        return self._heard(wave)

    def end(self, wave: int) -> None:
        self.cluster.kubectl("delete", "pods", f"--selector=wave={wave}", *self._here, "--now", "--wait=false")

    @property
    def _here(self) -> tuple[str, str]:
        return ("--namespace", self.namespace)

    def _show(self, steps: Iterable[tuple[History, Step]]) -> None:
        """Give the ConfigMaps what the steps say, of the pods that are there in the place of the recorded."""
        new = []
        for history, step in steps:
            name = _volume(history.case)
            if step.data is None:
                self.cluster.kubectl("delete", "configmap", name, *self._here)
                continue
            data = {key: self._played(history, text) for key, text in step.data.items()}
            if step.new:
                metadata = {"name": name, "namespace": self.namespace}
                new.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
            else:
                self.api.merge(f"/api/v1/namespaces/{self.namespace}/configmaps/{name}", {"data": data})
        if new:
            self.cluster.create(*new)

    def _played(self, history: History, text: str) -> str:
        """Recorded addresses may be real ones of other pods: all are exchanged in one go."""
        return re.sub(r'"([^"]*)"', lambda word: f'"{self.real.get(f"{history.case} {word[1]}", word[1])}"', text)

    def _pods(self, wave: int) -> None:
        """Make the pods of a wave, and learn who they are. Each plays a part in many histories, at most one in each."""
        parts: dict[str, dict[str, tuple[History, Role]]] = defaultdict(dict)
        for history in HISTORIES:
            for role in history.roles.values():
                if role.wave == wave:
                    on_node = sum(f"-node{role.node}-" in pod and history.case in cases for pod, cases in parts.items())
                    parts[f"wave{wave}-node{role.node}-{on_node}"][history.case] = (history, role)
        self.cluster.create(*(self._pod(name, wave, cases) for name, cases in parts.items()))
        self.cluster.kubectl(
            "wait", "pods", f"--selector=wave={wave}", "--for=condition=Ready", *self._here, "--timeout=300s"
        )
        for name, cases in parts.items():
            pod = self.api.get(f"/api/v1/namespaces/{self.namespace}/pods/{name}")
            for case, (_, role) in cases.items():
                if PODS.fullmatch(role.ip):
                    self.real[f"{case} {role.ip}"] = pod["status"]["podIP"]
                if role.uid:
                    self.real[f"{case} {role.uid}"] = pod["metadata"]["uid"]

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
        known = {"POD_UID": "metadata.uid", "POD_IP": "status.podIP", "HOST_IP": "status.hostIP"}
        references = [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in known.items()]
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
            # A ConfigMap may come after the pods.
            "volumes": [
                {"name": "tmp", "emptyDir": {}},
                *({"name": volume, "configMap": {"name": volume, "optional": True}} for volume in volumes),
            ],
            "nodeSelector": {"kubernetes.io/hostname": name.split("-")[1]},
            "terminationGracePeriodSeconds": 0,
        }
        metadata = {"name": name, "namespace": self.namespace, "labels": {"wave": str(wave)}}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}

    def _heard(self, wave: int) -> Said:
        """What all of them say, once there is nothing more to come."""
        # A kubelet looks after a volume each time that it looks after its pod: from 10 to 15 s, or now.
        self.cluster.kubectl("annotate", "pods", f"--selector=wave={wave}", "look=now", *self._here)
        said: Said = {}

        def waiting() -> list[str]:
            said.clear()
            log = self.cluster.kubectl("logs", f"--selector=wave={wave}", "--tail=-1", *self._here)
            for line in map(json.loads, log.splitlines()):
                said.setdefault(line["role"], []).append(line)
            roles = {f"{h.case} {r.ip}": r for h in HISTORIES for r in h.roles.values() if r.wave == wave}
            return [f"{name}: {said.get(name)}" for name, role in roles.items() if not _over(role, said.get(name))]

        until(lambda: not waiting(), lambda: "\n".join(waiting()), every_s=LOOK_EVERY_S)
        return said


def _over(role: Role, said: list[dict[str, Any]] | None) -> bool:
    """Whether the pod has its place, or says for the last time why it has none."""
    if not said:
        return False
    last = said[-1]
    return "waits" not in last or (bool(role.reason) and role.reason in str(last["waits"]))


@pytest.fixture(scope="module")
def played(cluster: Cluster) -> Iterator[tuple[Stage, list[Said]]]:
    """All histories, played."""
    cluster.inside("nodes with the recorded ones' addresses")
    with own_namespace(cluster) as namespace, closing(Api(cluster.kubeconfig)) as api:
        stage = Stage(cluster, namespace, api)
        heard = []
        for wave in WAVES:
            heard.append(stage.play(wave))
            stage.end(wave)
        yield stage, heard


@pytest.mark.parametrize("history", HISTORIES, ids=lambda history: history.case)
def test_the_pods_of_a_recorded_job_get_its_ranks_on_its_devices_or_say_why_not(
    played: tuple[Stage, list[Said]], history: History
) -> None:
    stage, heard = played
    for role in history.roles.values():
        *before, last = heard[role.wave][f"{history.case} {role.ip}"]
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
            "master": stage.real.get(f"{history.case} {role.master}", role.master),
        }
        assert last["mounted_is_link"]
        assert last["copy_is_regular"], "HCCL passes over a link"
