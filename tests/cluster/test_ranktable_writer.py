"""The stand-in for ascend-operator writes the recorded tables at the recorded moments, and wrong ones on request."""

import functools
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.support.waiting import until
from tests.cluster.testbed.api import Api
from tests.cluster.testbed.applying import apply_definitions
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
# The cases with a record of both the pods and the last completed table.
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
    recording: dict[str, Any] = json.loads((TABLES / f"op-HEAD-{case}.json").read_text())
    return recording


@pytest.mark.parametrize("case", RECORDED)
def test_the_same_pods_give_exactly_the_recorded_table(case: str) -> None:
    recording = _recorded(case)
    pods = [
        {
            "metadata": {"name": pod["name"], "uid": pod["uid"], "annotations": pod["annotations"]},
            "spec": {"nodeName": pod["node"]},
            "status": {"podIP": pod["podIP"]},
        }
        for pod in recording["pods"]
        if CONFIGURATION in pod["annotations"]
    ]
    texts = [entry["data"]["hccl.json"] for entry in recording["configmap_history"] if "data" in entry]
    completed = [text for text in texts if '"completed"' in text]
    assert all(map(is_ready, pods))
    assert json.dumps(table(pods), separators=(",", ":")) == completed[-1]


def test_the_writer_waits_for_a_missing_address_but_not_for_an_empty_one() -> None:
    def pod(address: str) -> dict[str, Any]:
        configuration = json.dumps({"devices": [{"device_id": "0", "device_ip": address}]})
        return {"metadata": {"annotations": {CONFIGURATION: configuration}}, "status": {"podIP": "10.0.0.1"}}

    assert [is_ready(pod(address)) for address in ("-1", "", "192.168.100.8")] == [False, True, True]


class JobNamespace:
    """A namespace with Volcano's kinds but without Volcano: the test creates a Job's pods itself."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.api = Api(cluster.kubeconfig)

    def writer(self, *, late_s: float = 0.0, fault: Fault | None = None) -> Writer:
        return Writer(self.api, late_s=late_s, fault=fault)

    def job(self, name: str, *, labels: dict[str, str] | None = None, limits_only: bool = False) -> None:
        """Create a Job of two pods."""
        npus = {RESOURCE: str(NPUS)}
        resources = {"limits": npus} if limits_only else {"requests": npus, "limits": npus}
        spec = {"containers": [{"name": "ascend", "image": images.PAUSE, "resources": resources}]}
        task = {"name": "worker", "replicas": 2, "template": {"spec": spec}}
        self._create("batch.volcano.sh/v1alpha1", "Job", name, labels=labels, spec={"tasks": [task]})

    def rank_table(self, job: str) -> None:
        self._create("v1", "ConfigMap", f"rings-config-{job}", data=INITIALIZING)

    def pod(self, job: str, index: int, *, node: str | None = None, rank_index: int | None = None) -> None:
        """Create a pod of a Job, and wait until it has its chips."""
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
        pod_words = ["pod", f"{job}-worker-{index}", "--namespace", self.namespace]
        self.cluster.kubectl("wait", "--for=condition=Ready", *pod_words, "--timeout=300s")
        self.cluster.kubectl("wait", "--for=jsonpath={.metadata.annotations.huawei\\.com/kltDev}", *pod_words)

    def remove(self, pod: str) -> None:
        self.cluster.kubectl("delete", "pod", pod, "--namespace", self.namespace)

    def data(self, job: str) -> dict[str, str]:
        content: dict[str, str] = self._get("configmap", f"rings-config-{job}")["data"]
        return content

    def servers(self, job: str) -> list[dict[str, Any]]:
        server_list: list[dict[str, Any]] = json.loads(self.data(job)["hccl.json"])["server_list"]
        return server_list

    def status(self, job: str) -> str:
        table_status: str = json.loads(self.data(job)["hccl.json"])["status"]
        return table_status

    def complete_job(self, job: str) -> None:
        """Create a Job with its ConfigMap and both pods."""
        self.rank_table(job)
        self.job(job, labels=ATLAS_LABEL)
        self.pod(job, 0)
        self.pod(job, 1)

    def address(self, pod: str) -> str:
        pod_ip: str = self._get("pod", pod)["status"]["podIP"]
        return pod_ip

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
def jobs(cluster: Cluster, namespace: str) -> Iterator[JobNamespace]:
    # The definitions of another cluster can have another version, and belong to its administrator.
    cluster.inside("Volcano's definitions, which it overwrites")
    apply_definitions(cluster, binaries.volcano_crds())
    cluster.kubectl("label", "namespace", namespace, LABEL)
    job_namespace = JobNamespace(cluster, namespace)
    with closing(job_namespace.api):
        yield job_namespace


def _ranks(servers: list[dict[str, Any]]) -> list[str]:
    return [device["rank_id"] for server in servers for device in server["device"]]


_until = functools.partial(until, within_s=300, every_s=0.1)


def test_a_table_is_completed_restarted_and_completed_with_the_replacement_pod(jobs: JobNamespace) -> None:
    writer = jobs.writer()
    jobs.rank_table("life")
    jobs.job("life", labels=ATLAS_LABEL)
    jobs.pod("life", 0)
    writer.update()
    assert jobs.data("life") == INITIALIZING, "the table must wait for the last pod's devices"
    jobs.pod("life", 1)
    writer.update()
    first = jobs.data("life")
    servers = jobs.servers("life")
    assert (jobs.status("life"), first["version"]) == ("completed", "0")
    assert [server["server_id"] for server in servers] == ["10.123.0.2", "10.123.0.1"], "worker-1 is first"
    assert [server["container_ip"] for server in servers] == [jobs.address(f"life-worker-{n}") for n in (1, 0)]
    assert _ranks(servers) == ["0", "1", "2", "3"]
    jobs.remove("life-worker-1")
    writer.update()
    restarted = jobs.data("life")
    assert restarted["hccl.json"] == first["hccl.json"].replace("completed", "initializing")
    assert int(restarted["version"]) > 10**9, "the time of the save before"
    jobs.pod("life", 1)
    writer.update()
    assert jobs.status("life") == "completed"
    assert jobs.servers("life")[0]["container_ip"] == jobs.address("life-worker-1"), "it has the free index"
    assert _ranks(jobs.servers("life")) == ["0", "1", "2", "3"]


def test_pods_of_one_node_differ_by_uid_and_keep_volcanos_index(jobs: JobNamespace) -> None:
    jobs.rank_table("one")
    jobs.job("one", labels=ATLAS_LABEL)
    jobs.pod("one", 0, node="node1", rank_index=0)
    jobs.pod("one", 1, node="node1", rank_index=1)
    jobs.writer().update()
    servers = jobs.servers("one")
    pods = [jobs.cluster.get("pod", f"one-worker-{n}", "--namespace", jobs.namespace) for n in (0, 1)]
    assert [server["server_id"] for server in servers] == [pod["metadata"]["uid"] for pod in pods]
    assert {server["host_ip"] for server in servers} == {"10.123.0.1"}
    assert _ranks(servers) == ["0", "1", "2", "3"]


def test_no_table_for_a_job_without_label_or_requests_or_with_a_late_configmap(jobs: JobNamespace) -> None:
    writer = jobs.writer()
    jobs.rank_table("unlabelled")
    jobs.job("unlabelled")
    jobs.rank_table("limits")
    jobs.job("limits", labels=ATLAS_LABEL, limits_only=True)
    jobs.job("late", labels=ATLAS_LABEL)
    for job in ("unlabelled", "limits", "late"):
        jobs.pod(job, 0)
        jobs.pod(job, 1)
    writer.update()
    jobs.rank_table("late")
    writer.update()
    assert [jobs.data(job) for job in ("unlabelled", "limits", "late")] == [INITIALIZING] * 3
    jobs.writer().update()
    assert jobs.status("late") == "completed", "a new writer finds it"


def test_a_changed_configmap_stays_until_the_pods_change(jobs: JobNamespace) -> None:
    writer = jobs.writer()
    jobs.complete_job("again")
    writer.update()
    jobs.api.merge(f"/api/v1/namespaces/{jobs.namespace}/configmaps/rings-config-again", {"data": INITIALIZING})
    writer.update()
    assert jobs.data("again")["hccl.json"] == INITIALIZING["hccl.json"]


def test_namespaces_without_the_label_stay_unchanged(jobs: JobNamespace) -> None:
    jobs.complete_job("other")
    jobs.cluster.kubectl("label", "namespace", jobs.namespace, f"{LABEL.partition('=')[0]}-")
    jobs.writer().update()
    assert jobs.data("other") == INITIALIZING


def test_a_table_is_late_absent_or_wrong_on_request(jobs: JobNamespace) -> None:
    jobs.complete_job("bad")
    late_writer = jobs.writer(late_s=3600)
    late_writer.update()
    late_writer.update()
    jobs.writer(fault="absent").update()
    assert jobs.data("bad") == INITIALIZING
    jobs.writer(fault="missing-device").update()
    assert _ranks(jobs.servers("bad")) == ["0", "1", "2"]
    jobs.writer(fault="duplicate-rank").update()
    assert _ranks(jobs.servers("bad")) == ["0", "1", "2", "0"]


def test_the_writer_runs_outside_the_cluster_with_only_its_rights(jobs: JobNamespace) -> None:
    with ranktable_writer(jobs.cluster, late_s=0.5):
        jobs.complete_job("outside")
        _until(lambda: jobs.status("outside") == "completed", lambda: jobs.data("outside"))
        jobs.remove("outside-worker-0")
        _until(lambda: jobs.status("outside") == "initializing", lambda: jobs.data("outside"))
    log = (jobs.cluster.folder / "logs" / "ranktable-writer.log").read_text()
    assert "a stand-in" in log
    assert "403" not in log
