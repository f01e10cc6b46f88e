"""The stand-in for ascend-operator writes what the real one was seen to write, and when; and wrong where told to."""

import functools
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.support.waiting import until
from tests.cluster.testbed.api import Api
from tests.cluster.testbed.artifacts import binaries, images
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.npus.device_plugin import RESOURCE
from tests.cluster.testbed.npus.pod_annotations import CONFIGURATION
from tests.cluster.testbed.npus.ranktable_writer import (
    ATLAS,
    LABEL,
    RANK_INDEX,
    Fault,
    Writer,
    is_ready,
    ranktable_writer,
    table,
)

TABLES = Path(__file__).parents[1] / "data" / "ranktables"
NPUS = 2
ATLAS_LABEL = {ATLAS: "ascend-910"}
INITIALIZING = {"hccl.json": '{"status":"initializing"}'}
# Those of whose pods and last completed table both were recorded.
RECORDED = (
    "2nodes-2x8",
    "2nodes-2x8-old-device-plugin",
    "acjob-1x8",
    "acjob-worker-fails",
    "cm-applied-again-after-completed",
    "controller-down-at-creation",
    "controller-restart",
    "device-ip-empty",
    "device-ip-minus1-then-good",
    "extra-task-without-npu-hcclrank",
    "job-completed",
    "label-on-job-only-odd-value",
    "old-device-plugin-one-pod-per-node",
    "old-device-plugin-two-pods-one-node",
    "one-pod-replaced",
)


def _recorded(case: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((TABLES / f"op-HEAD-{case}.json").read_text())
    return read


@pytest.mark.parametrize("case", RECORDED)
def test_the_same_pods_give_the_table_that_was_recorded_to_the_letter(case: str) -> None:
    recorded = _recorded(case)
    pods = [
        {
            "metadata": {"name": pod["name"], "uid": pod["uid"], "annotations": pod["annotations"]},
            "spec": {"nodeName": pod["node"]},
            "status": {"podIP": pod["podIP"]},
        }
        for pod in recorded["pods"]
        if CONFIGURATION in pod["annotations"]
    ]
    written = [entry["data"]["hccl.json"] for entry in recorded["configmap_history"] if "data" in entry]
    completed = [text for text in written if '"completed"' in text]
    assert all(map(is_ready, pods))
    assert json.dumps(table(pods), separators=(",", ":")) == completed[-1]


def test_a_device_without_an_address_is_waited_for_and_an_empty_address_is_not() -> None:
    def pod(address: str) -> dict[str, Any]:
        told = json.dumps({"devices": [{"device_id": "0", "device_ip": address}]})
        return {"metadata": {"annotations": {CONFIGURATION: told}}, "status": {"podIP": "10.0.0.1"}}

    assert [is_ready(pod(address)) for address in ("-1", "", "192.168.100.8")] == [False, True, True]


class Stage:
    """A namespace with Volcano's kinds but no Volcano: the test makes a Job's pods itself."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.api = Api(cluster.kubeconfig)

    def writer(self, *, late_s: float = 0.0, fault: Fault | None = None) -> Writer:
        return Writer(self.api, late_s=late_s, fault=fault)

    def job(self, name: str, *, labels: dict[str, str] | None = None, limits_only: bool = False) -> None:
        """Of two pods."""
        npus = {RESOURCE: str(NPUS)}
        resources = {"limits": npus} if limits_only else {"requests": npus, "limits": npus}
        spec = {"containers": [{"name": "ascend", "image": images.PAUSE, "resources": resources}]}
        task = {"name": "worker", "replicas": 2, "template": {"spec": spec}}
        self._create("batch.volcano.sh/v1alpha1", "Job", name, labels=labels, spec={"tasks": [task]})

    def ringtable(self, job: str) -> None:
        self._create("v1", "ConfigMap", f"rings-config-{job}", data=INITIALIZING)

    def pod(self, job: str, index: int, *, node: str | None = None, rank_index: int | None = None) -> None:
        """One of a Job's, up to its having its chips."""
        npus = {RESOURCE: str(NPUS)}
        container = {
            "name": "ascend",
            "image": images.PAUSE,
            "imagePullPolicy": "Never",
            "resources": {"requests": npus, "limits": npus},
        }
        owner = self._get("jobs.batch.volcano.sh", job)["metadata"]["uid"]
        reference = {"apiVersion": "batch.volcano.sh/v1alpha1", "kind": "Job", "name": job, "uid": owner}
        self._create(
            "v1",
            "Pod",
            f"{job}-worker-{index}",
            labels={"volcano.sh/job-name": job},
            annotations={} if rank_index is None else {RANK_INDEX: str(rank_index)},
            owners=[{**reference, "controller": True}],
            spec={
                "containers": [container],
                "nodeSelector": {"kubernetes.io/hostname": node or f"node{index + 1}"},
                "terminationGracePeriodSeconds": 0,
            },
        )
        where = ["pod", f"{job}-worker-{index}", "--namespace", self.namespace]
        self.cluster.kubectl("wait", "--for=condition=Ready", *where, "--timeout=300s")
        self.cluster.kubectl("wait", "--for=jsonpath={.metadata.annotations.huawei\\.com/kltDev}", *where)

    def remove(self, pod: str) -> None:
        self.cluster.kubectl("delete", "pod", pod, "--namespace", self.namespace)

    def data(self, job: str) -> dict[str, str]:
        found: dict[str, str] = self._get("configmap", f"rings-config-{job}")["data"]
        return found

    def servers(self, job: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.data(job)["hccl.json"])["server_list"]
        return found

    def status(self, job: str) -> str:
        found: str = json.loads(self.data(job)["hccl.json"])["status"]
        return found

    def full(self, job: str) -> None:
        """A Job with its ConfigMap and both pods."""
        self.ringtable(job)
        self.job(job, labels=ATLAS_LABEL)
        self.pod(job, 0)
        self.pod(job, 1)

    def address(self, pod: str) -> str:
        found: str = self._get("pod", pod)["status"]["podIP"]
        return found

    def _get(self, *words: str) -> Any:
        return self.cluster.get(*words, "--namespace", self.namespace)

    def _create(
        self,
        version: str,
        kind: str,
        name: str,
        *,
        labels: dict[str, str] | None = None,
        annotations: dict[str, str] | None = None,
        owners: list[dict[str, Any]] | None = None,
        **content: Any,
    ) -> None:
        metadata = {"name": name, "namespace": self.namespace, "labels": labels or {}, "annotations": annotations or {}}
        created = {"apiVersion": version, "kind": kind, "metadata": {**metadata, "ownerReferences": owners or []}}
        self.cluster.create({**created, **content})


@pytest.fixture
def stage(cluster: Cluster, namespace: str) -> Iterator[Stage]:
    # Those of somebody's cluster may be of another version, and are theirs.
    cluster.inside("Volcano's definitions, which it overwrites")
    definitions = binaries.volcano_crds()
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "--filename", str(definitions))
    # `kubectl wait` fails where there are no conditions yet.
    _until(lambda: _established(cluster), lambda: cluster.get("crd", "jobs.batch.volcano.sh"))
    cluster.kubectl("label", "namespace", namespace, LABEL)
    one = Stage(cluster, namespace)
    with closing(one.api):
        yield one


def _established(cluster: Cluster) -> bool:
    conditions = cluster.get("crd", "jobs.batch.volcano.sh").get("status", {}).get("conditions") or ()
    return any(condition["type"] == "Established" and condition["status"] == "True" for condition in conditions)


def _ranks(servers: list[dict[str, Any]]) -> list[str]:
    return [device["rank_id"] for server in servers for device in server["device"]]


_until = functools.partial(until, within_s=300, every_s=0.1)


def test_a_table_is_completed_begun_anew_and_completed_with_the_pod_that_replaces_one(stage: Stage) -> None:
    writer = stage.writer()
    stage.ringtable("life")
    stage.job("life", labels=ATLAS_LABEL)
    stage.pod("life", 0)
    writer.look()
    assert stage.data("life") == INITIALIZING, "not before the last pod has its devices"
    stage.pod("life", 1)
    writer.look()
    first = stage.data("life")
    servers = stage.servers("life")
    assert (stage.status("life"), first["version"]) == ("completed", "0")
    assert [server["server_id"] for server in servers] == ["10.123.0.2", "10.123.0.1"], "worker-1 is first"
    assert [server["container_ip"] for server in servers] == [stage.address(f"life-worker-{n}") for n in (1, 0)]
    assert _ranks(servers) == ["0", "1", "2", "3"]
    stage.remove("life-worker-1")
    writer.look()
    anew = stage.data("life")
    assert anew["hccl.json"] == first["hccl.json"].replace("completed", "initializing")
    assert int(anew["version"]) > 10**9, "the time of the save before"
    stage.pod("life", 1)
    writer.look()
    assert stage.status("life") == "completed"
    assert stage.servers("life")[0]["container_ip"] == stage.address("life-worker-1"), "it has the free index"
    assert _ranks(stage.servers("life")) == ["0", "1", "2", "3"]


def test_pods_of_one_node_are_told_apart_by_their_uid_and_an_index_that_volcano_gave_holds(stage: Stage) -> None:
    stage.ringtable("one")
    stage.job("one", labels=ATLAS_LABEL)
    stage.pod("one", 0, node="node1", rank_index=0)
    stage.pod("one", 1, node="node1", rank_index=1)
    stage.writer().look()
    servers = stage.servers("one")
    pods = [stage.cluster.get("pod", f"one-worker-{n}", "--namespace", stage.namespace) for n in (0, 1)]
    assert [server["server_id"] for server in servers] == [pod["metadata"]["uid"] for pod in pods]
    assert {server["host_ip"] for server in servers} == {"10.123.0.1"}
    assert _ranks(servers) == ["0", "1", "2", "3"]


def test_no_table_for_a_job_without_label_or_with_limits_alone_or_whose_configmap_comes_late(stage: Stage) -> None:
    writer = stage.writer()
    stage.ringtable("unlabelled")
    stage.job("unlabelled")
    stage.ringtable("limits")
    stage.job("limits", labels=ATLAS_LABEL, limits_only=True)
    stage.job("late", labels=ATLAS_LABEL)
    for job in ("unlabelled", "limits", "late"):
        stage.pod(job, 0)
        stage.pod(job, 1)
    writer.look()
    stage.ringtable("late")
    writer.look()
    assert [stage.data(job) for job in ("unlabelled", "limits", "late")] == [INITIALIZING] * 3
    stage.writer().look()
    assert stage.status("late") == "completed", "a writer that has not looked for it in vain finds it"


def test_what_is_put_into_the_configmap_afterwards_stays_until_the_pods_change(stage: Stage) -> None:
    writer = stage.writer()
    stage.full("again")
    writer.look()
    stage.api.merge(f"/api/v1/namespaces/{stage.namespace}/configmaps/rings-config-again", {"data": INITIALIZING})
    writer.look()
    assert stage.data("again")["hccl.json"] == INITIALIZING["hccl.json"]


def test_it_touches_no_namespace_that_is_not_labelled(stage: Stage) -> None:
    stage.full("other")
    stage.cluster.kubectl("label", "namespace", stage.namespace, f"{LABEL.partition('=')[0]}-")
    stage.writer().look()
    assert stage.data("other") == INITIALIZING


def test_it_is_late_absent_or_wrong_when_told_to(stage: Stage) -> None:
    stage.full("bad")
    late = stage.writer(late_s=3600)
    late.look()
    late.look()
    stage.writer(fault="absent").look()
    assert stage.data("bad") == INITIALIZING
    stage.writer(fault="missing-device").look()
    assert _ranks(stage.servers("bad")) == ["0", "1", "2"]
    stage.writer(fault="duplicate-rank").look()
    assert _ranks(stage.servers("bad")) == ["0", "1", "2", "0"]


def test_it_runs_beside_the_cluster_with_rights_of_its_own(stage: Stage) -> None:
    with ranktable_writer(stage.cluster, late_s=0.5):
        stage.full("beside")
        _until(lambda: stage.status("beside") == "completed", lambda: stage.data("beside"))
        stage.remove("beside-worker-0")
        _until(lambda: stage.status("beside") == "initializing", lambda: stage.data("beside"))
    log = (stage.cluster.folder / "logs" / "ranktable-writer.log").read_text()
    assert "a stand-in" in log
    assert "403" not in log
