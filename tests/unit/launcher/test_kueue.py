"""Kubernetes Jobs in a queue of Kueue: their manifests, checks, phases, reasons, and how they are stopped."""

from typing import Any, cast

import pytest

from launcher.errors import ApiError, LauncherError, WaitTimeoutError
from launcher.jobs import Phase
from launcher.kinds import CANCELLED, kind_named, kueue
from launcher.kinds.batch import BATCH_JOBS
from launcher.kinds.labels import KUEUE_QUEUE
from launcher.kube.api import Api, Json
from launcher.kube.resources import Resource
from launcher.manifests.pod_spec import make_pod_spec
from launcher.manifests.render import render_manifests
from launcher.settings.layers import resolve_settings
from tests.unit.launcher.test_kinds import pod
from trainer.shared.config import Layer

BATCH = kind_named("batch")
LONG_AGO, NOW = "2026-11-24T11:00:00Z", 1_795_521_600.0
MORE_NEEDED = "couldn't assign flavors to pod set main: insufficient unused quota for cpu in flavor f, 1 more needed"


def rendered(backend: str = "batch", defaults: dict[str, Any] | None = None, **flags: Any) -> Json:
    """Return the job object of these options."""
    layer = None if defaults is None else Layer("cluster defaults (configmap pnas-defaults in n)", defaults)
    settings = resolve_settings(
        {"image": "r/p:1", **flags}, None, {}, defaults=None if layer is None else lambda _mode: layer
    )
    kind = kind_named(backend)
    return render_manifests(make_pod_spec(settings, kind), kind)[-1]


@pytest.mark.parametrize(
    ("flags", "queue"),
    [
        ({}, None),
        ({"queue": "team-a"}, "team-a"),
        ({"job_label": [f"{KUEUE_QUEUE}=team-a"]}, "team-a"),
        ({"queue": "team-a", "job_label": [f"{KUEUE_QUEUE}=team-a"]}, "team-a"),
        ({"defaults": {"queue": "volcanos-queue"}}, None),
        ({"defaults": {"job_label": [f"{KUEUE_QUEUE}=team-a"]}}, "team-a"),
        ({"defaults": {"queue": "volcanos-queue"}, "queue": "team-a"}, "team-a"),
    ],
)
def test_a_queued_job_has_kueues_label_and_begins_suspended(flags: dict[str, Any], queue: str | None) -> None:
    """Without the suspend, a job would have pods for a moment where Kueue's webhook is missing."""
    job = rendered(**flags)
    assert job["metadata"]["labels"].get(KUEUE_QUEUE) == queue
    assert job["spec"].get("suspend") == (True if queue else None)
    assert KUEUE_QUEUE not in job["spec"]["template"]["metadata"]["labels"], "Kueue would take the pods for its own"


def test_a_volcano_job_has_its_queue_in_a_field() -> None:
    job = rendered("volcano", queue="team-a")
    assert job["spec"]["queue"] == "team-a"
    assert KUEUE_QUEUE not in job["metadata"]["labels"]
    assert "suspend" not in job["spec"]


def condition(name: str, status: str, message: str = "", reason: str = "R") -> Json:
    return {"type": name, "status": status, "message": message, "reason": reason}


def workload(uid: str, *conditions: Json, created: str = LONG_AGO, **spec: Any) -> Json:
    labels = {"kueue.x-k8s.io/job-uid": uid}
    meta = {"name": f"job-{uid}", "labels": labels, "creationTimestamp": created}
    return {"metadata": meta, "spec": {"queueName": "team-a", **spec}, "status": {"conditions": [*conditions]}}


def queued_job(uid: str = "u", *, suspend: bool = True, created: str = LONG_AGO, cancelled: bool = False) -> Json:
    annotations = {CANCELLED: LONG_AGO} if cancelled else {}
    meta = {"name": f"a-{uid}", "uid": uid, "labels": {KUEUE_QUEUE: "team-a"}, "annotations": annotations}
    return {"metadata": {**meta, "creationTimestamp": created}, "spec": {"suspend": suspend}, "status": {}}


class Cluster:
    """An API server with Kueue, or without it, and these objects."""

    namespace, origin = "training", "here"

    def __init__(self, *objects: Json, version: str | None = "v1beta2", hidden: bool = False) -> None:
        self.objects, self.version, self.hidden = objects, version, hidden
        self.asked: list[str] = []
        self.patches: list[tuple[str, str, Json]] = []

    def request(self, method: str, path: str, *, action: str) -> Json:
        assert (method, path) == ("GET", "/apis/kueue.x-k8s.io"), action
        if self.version is None:
            raise ApiError("not found", status=404)
        return {"kind": "APIGroup", "preferredVersion": {"version": self.version}}

    def find(self, resource: Resource, name: str) -> Json | None:
        self._check(resource)
        return next((item for item in self.objects if item["metadata"]["name"] == name), None)

    def list(self, resource: Resource, *, labels: str = "") -> tuple[list[Json], str]:
        self._check(resource)
        key, _, value = labels.partition("=")
        return [item for item in self.objects if not key or item["metadata"]["labels"].get(key) == value], "1"

    def patch(self, resource: Resource, name: str, body: Json) -> None:
        self._check(resource)
        self.patches.append((resource.plural, name, body))

    def _check(self, resource: Resource) -> None:
        if resource != BATCH_JOBS:
            assert (resource.group, resource.version) == ("kueue.x-k8s.io", self.version)
            self.asked.append(resource.plural)
            if self.hidden:
                raise ApiError(f"you have no right to {resource}", status=403, of_rights=True)


def as_api(cluster: Cluster) -> Api:
    return cast("Api", cluster)


@pytest.mark.parametrize(
    ("workloads", "reason"),
    [
        ([workload("u")], "queued in team-a, 1 of 1"),
        ([workload("u", condition("QuotaReserved", "False", MORE_NEEDED))], f"queued in team-a, 1 of 1: {MORE_NEEDED}"),
        (
            [
                workload(
                    "u", condition("Evicted", "True", "x"), condition("QuotaReserved", "False", "Preempted by\n b")
                ),
                workload("runs", condition("QuotaReserved", "True")),
                workload("ended", condition("Finished", "True")),
                workload("stopped", active=False),
                workload("elsewhere", queueName="team-b"),
                workload("older", created="2026-11-24T10:59:59Z"),
                workload("younger", created="2026-11-24T11:00:01Z"),
                workload("important", created="2026-11-24T11:00:02Z", priority=5),
            ],
            "queued in team-a, 3 of 4: Preempted by b",
        ),
        ([workload("u", condition("QuotaReserved", "True"))], "queue team-a has room for it; it waits for its start"),
        (
            [workload("u", condition("Evicted", "True", "The workload is deactivated"), active=False)],
            "Kueue does not start it, because its Workload is deactivated: The workload is deactivated",
        ),
        ([], "Kueue has not looked at it; is it running?"),
    ],
)
def test_a_waiting_job_gives_the_queues_own_reason_and_its_place(workloads: list[Json], reason: str) -> None:
    assert kueue.reasons(as_api(Cluster(*workloads)), [queued_job()], NOW) == {"u": reason}


def test_an_admission_check_is_named() -> None:
    reserved = workload("u", condition("QuotaReserved", "True"))
    reserved["status"]["admissionChecks"] = [{"name": "nodes", "state": "Pending", "message": "2 of 4"}]
    reasons = kueue.reasons(as_api(Cluster(reserved)), [queued_job()], NOW)
    assert reasons == {"u": "queue team-a has room for it; it waits for nodes Pending 2 of 4"}


def test_only_waiting_jobs_cost_a_request_and_all_of_them_only_one() -> None:
    young = "2026-11-24T12:00:00Z"
    cluster = Cluster(workload("u"), workload("v"))
    plain = {"metadata": {"name": "p", "uid": "p", "creationTimestamp": LONG_AGO}, "spec": {"suspend": True}}
    assert kueue.reasons(as_api(cluster), [plain, queued_job("r", suspend=False)], NOW) == {}
    assert cluster.asked == []
    jobs = [queued_job("u"), queued_job("v"), queued_job("young", created=young)]
    assert set(kueue.reasons(as_api(cluster), jobs, NOW)) == {"u", "v"}
    assert cluster.asked == ["workloads"]
    assert kueue.reasons(as_api(Cluster(version=None)), jobs, NOW) == {}


@pytest.mark.parametrize(
    ("job", "pods", "phase", "reason"),
    [
        (queued_job(), [], Phase.PENDING, "queued by Kueue"),
        (queued_job(), [pod("Failed")], Phase.PENDING, "queued by Kueue"),
        (queued_job(), [pod("Running")], Phase.RUNNING, "stopping"),
        (queued_job(suspend=False), [pod("Running")], Phase.RUNNING, ""),
        (queued_job(cancelled=True), [pod("Running")], Phase.RUNNING, "stopping"),
        (queued_job(cancelled=True), [], Phase.CANCELLED, "stopped; it can go on"),
    ],
)
def test_the_phase_of_a_queued_job(job: Json, pods: list[Json], phase: Phase, reason: str) -> None:
    assert BATCH.phase(job, pods) == (phase, reason)


def test_a_queued_job_is_stopped_by_its_workload_and_suspended_by_kueue() -> None:
    cluster = Cluster(workload("u"), workload("other"), version="v1beta1")
    BATCH.stop(as_api(cluster), queued_job())
    [deactivated, annotated] = cluster.patches
    assert deactivated == ("workloads", "job-u", {"spec": {"active": False}})
    assert annotated[:2] == ("jobs", "a-u")
    assert list(annotated[2]) == ["metadata"], "its suspend is Kueue's"
    assert list(annotated[2]["metadata"]["annotations"]) == [CANCELLED]


def test_a_queued_job_of_a_cluster_without_kueue_is_suspended() -> None:
    cluster = Cluster(version=None)
    BATCH.stop(as_api(cluster), queued_job(suspend=False))
    [(_, _, body)] = cluster.patches
    assert body["spec"] == {"suspend": True}


@pytest.mark.parametrize(
    ("cluster", "error", "text"),
    [
        (Cluster(hidden=True), ApiError, "you have no right"),
        (Cluster(workload("other")), WaitTimeoutError, "Kueue has made no Workload of it, and could start it later"),
    ],
)
def test_a_job_that_kueue_could_start_again_is_not_called_cancelled(
    monkeypatch: pytest.MonkeyPatch, cluster: Cluster, error: type[LauncherError], text: str
) -> None:
    monkeypatch.setattr(kueue, "_WORKLOAD_S", 0.0)
    with pytest.raises(error, match=text):
        BATCH.stop(as_api(cluster), queued_job())
    assert cluster.patches == []


def local_queue(policy: str = "None", *conditions: Json) -> Json:
    spec = {"clusterQueue": "c", "stopPolicy": policy}
    return {"metadata": {"name": "team-a"}, "spec": spec, "status": {"conditions": [*conditions]}}


@pytest.mark.parametrize(
    ("cluster", "state", "text"),
    [
        (Cluster(version=None), "missing", "--queue team-a: here has no Kueue, whose queues Kubernetes Jobs use"),
        (Cluster(), "missing", "--queue team-a: there is no such queue in namespace training"),
        (Cluster(hidden=True), "unknown", "not checked: whether it is there and starts jobs: you have no right"),
        (Cluster(local_queue("Hold")), "later", "it is stopped (Hold): a job waits until the administrator"),
        (
            Cluster(local_queue("None", condition("Active", "False", "Can't submit new workloads to clusterQueue"))),
            "later",
            "its ClusterQueue c starts no jobs: Can't submit new workloads to clusterQueue; ask the administrator",
        ),
        (Cluster(local_queue()), "ok", "Kueue's, open; its ClusterQueue is c"),
        (Cluster(local_queue("None", condition("Active", "True"))), "ok", "Kueue's, open"),
    ],
)
def test_the_queue_is_checked_before_the_job_exists(cluster: Cluster, state: str, text: str) -> None:
    finding = kueue.check_local_queue(as_api(cluster), "team-a")
    assert (finding.about, finding.state) == ("queue team-a", state)
    assert text in finding.text
