"""Objects of a cluster as the rules of `explain` read them: small, and ten minutes old."""

from datetime import datetime, timezone
from typing import Any

from launcher.cluster.causes import find_causes
from launcher.cluster.job_objects import JobObjects
from launcher.kinds import kind_named
from launcher.kinds.labels import JOB_LABEL, MANAGED
from launcher.kube.api import Json
from tests.unit.launcher.test_doctor import NPU, node

NOW = datetime(2026, 11, 30, 12, tzinfo=timezone.utc).timestamp()
BATCH, VOLCANO = kind_named("batch"), kind_named("volcano")


def at(seconds_ago: float) -> str:
    """Return a time as Kubernetes writes it."""
    return datetime.fromtimestamp(NOW - seconds_ago, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def pod_spec(npus: int = 8, **more: Any) -> Json:
    """Return the spec of a pod of the job."""
    resources = {"requests": {NPU: str(npus), "cpu": "8"}, "limits": {NPU: str(npus), "memory": "64Gi"}}
    container = {"name": "trainer", "image": "r/pnas:1", "resources": resources if npus else {}}
    return {"containers": [container], "schedulerName": "default-scheduler", **more}


def batch(npus: int = 8, conditions: tuple[Json, ...] = (), pods: int = 1, failed: int = 0, **spec: Any) -> Json:
    """Return a Kubernetes Job that is ten minutes old."""
    meta = {"name": "w", "uid": "job", "creationTimestamp": at(600)}
    counts = {"parallelism": pods, "completions": pods, "template": {"spec": pod_spec(npus, **spec)}}
    status = {"conditions": list(conditions), "failed": failed}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": counts, "status": status}


def volcano(npus: int = 8, nodes: int = 1, phase: str = "Pending", **spec: Any) -> Json:
    """Return a Volcano Job."""
    task = {"name": "worker", "replicas": nodes, "template": {"spec": pod_spec(npus, **spec)}}
    meta = {"name": "w", "uid": "job", "creationTimestamp": at(600)}
    body = {"minAvailable": nodes, "queue": "default", "tasks": [task]}
    status = {"state": {"phase": phase}} if phase else {}
    return {"apiVersion": "batch.volcano.sh/v1alpha1", "kind": "Job", "metadata": meta, "spec": body, "status": status}


def pod(
    name: str = "w-a", *, phase: str = "Pending", on: str = "", age: float = 300, npus: int = 8, **more: Any
) -> Json:
    """Return a pod of the job, or, with `owner`, of another job."""
    labels = {**MANAGED, JOB_LABEL: more.pop("owner", "w")}
    meta: Json = {"name": name, "uid": name, "namespace": "training", "creationTimestamp": at(age), "labels": labels}
    meta["annotations"] = more.pop("annotations", {})
    placed = {"type": "PodScheduled", "status": "True", "lastTransitionTime": at(age)}
    spec = {**pod_spec(npus, **more.pop("spec", {})), **({"nodeName": on} if on else {})}
    status = {"phase": phase, "conditions": [placed] if on else [], **more}
    return {"metadata": meta, "spec": spec, "status": status}


def unplaced(message: str = f"0/2 nodes are available: 2 Insufficient {NPU}.", name: str = "w-a", **more: Any) -> Json:
    """Return a pod for which the scheduler finds no node."""
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return pod(name, **more) | {"status": {"phase": "Pending", "conditions": [condition]}}


def held(reason: str, message: str) -> Json:
    """Return a pod with a node whose container waits."""
    waiting = {"name": "trainer", "state": {"waiting": {"reason": reason, "message": message}}}
    return pod(on="a", containerStatuses=[waiting])


def ended(code: int, reason: str = "Error", message: str = "", name: str = "w-a", **status: Any) -> Json:
    """Return a failed pod."""
    terminated = {"exitCode": code, "reason": reason, "message": message, "finishedAt": at(60)}
    container = {"name": "trainer", "state": {"terminated": terminated}}
    return pod(name, phase="Failed", on="a", containerStatuses=[container], **status)


def event(item: Json, reason: str, message: str, *, ago: float = 30, kind: str = "Pod", normal: bool = False) -> Json:
    """Return an event about an object."""
    about = {"kind": kind, "name": item["metadata"]["name"], "uid": item["metadata"]["uid"]}
    meta = {"name": "e", "creationTimestamp": at(ago)}
    type_ = "Normal" if normal else "Warning"
    return {"metadata": meta, "involvedObject": about, "type": type_, "reason": reason, "message": message} | {
        "lastTimestamp": at(ago)
    }


def running(owner: str, on: str, npus: int = 8) -> Json:
    """Return a pod of another job that holds devices."""
    return pod(f"{owner}-0", phase="Running", on=on, npus=npus, owner=owner)


def objects(job: Json, pods: list[Json] | tuple[Json, ...] = (), **more: Any) -> JobObjects:
    """Return the objects of a job on two nodes of eight free NPUs."""
    kind = VOLCANO if "volcano" in job["apiVersion"] else BATCH
    shared: dict[str, Any] = {"nodes": [node("a"), node("b")], "others": []}
    return JobObjects(kind, job, pods, NOW, **{**shared, **more})


FAILED = ({"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "m"},)
GANG = {"metadata": {"name": "w-job", "uid": "gang", "creationTimestamp": at(500)}}


Case = tuple[JobObjects, str, str]
"""What is seen, the rule that finds the first cause in it, and a part of the cause's text."""


def check_first_cause(case: Case) -> None:
    """Check the first cause of what is seen, and that every cause is one line."""
    seen, rule, text = case
    causes = find_causes(seen)
    assert causes, "no cause"
    assert causes[0].rule == rule, causes
    assert text in causes[0].text
    assert causes[0].steps, "the user learns what to do"
    for cause in causes:
        assert "\n" not in cause.text + "".join((*cause.evidence, *cause.steps))
