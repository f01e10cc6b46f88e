"""Each rule of `explain` finds its cause in objects that show it, and none in objects that do not: by one table."""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import pytest

from launcher.cluster.causes import find_causes
from launcher.cluster.job_objects import JobObjects
from launcher.cluster.rank_table_causes import DEVICES
from launcher.jobs import Cause, Phase, PreflightFinding
from launcher.kinds import kind_named
from launcher.kinds.labels import JOB_LABEL, MANAGED, RING_CONTROLLER
from launcher.kinds.needs import PodNeeds
from launcher.kinds.objects import clock_time, unix_time
from launcher.kinds.volcano import check_queue
from launcher.kube.api import Json
from tests.unit.launcher.test_doctor import NPU, node
from tests.unit.volcano.objects import NAMES, pods_of, read_sample

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
LATE = ({"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "m"},)
TAINT = {"key": "npu", "value": "busy", "effect": "NoSchedule"}
GANG = {"metadata": {"name": "w-job", "uid": "gang", "creationTimestamp": at(500)}}
QUEUED = {**GANG, "status": {"phase": "Pending"}}
TABLE: dict[str, Any] = {"volumes": [{"name": "t", "configMap": {"name": "rings-config-w"}}]}
INITIALIZING = {"metadata": {"name": "rings-config-w"}, "data": {"hccl.json": '{"status":"initializing"}'}}
WAITS = b"[node 0 #3] waiting for rank table /user/hccl.json: its status is initializing\n"
ANTI: dict[str, Any] = {"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{}]}}}


def devices(address: str) -> dict[str, str]:
    """Return the annotation of MindCluster's device plugin."""
    return {DEVICES: json.dumps({"devices": [{"device_id": "0", "device_ip": address}]})}


def labelled(job: Json) -> Json:
    """Return a job that MindCluster's parts know."""
    return {**job, "metadata": {**job["metadata"], "labels": {RING_CONTROLLER: "ascend-910"}}}


def limits_only() -> Json:
    """Return a Volcano Job whose pods have their NPUs as limits only."""
    container = {"name": "trainer", "resources": {"limits": {NPU: "8"}}}
    return labelled(volcano(phase="Running", **TABLE, containers=[container]))


def waits_for_table(annotations: Mapping[str, str], table: Json | None, log: bytes = WAITS) -> JobObjects:
    """Return a running job whose pod waits for its rank table."""
    mine = pod("w-0", phase="Running", on="a", annotations=dict(annotations))
    job = labelled(volcano(phase="Running", **TABLE))
    return objects(job, [mine], rank_table=table, logs={"w-0": log})


def failed_with(log: str, *, code: int = 1, reason: str = "Error", retries: int = 0) -> JobObjects:
    """Return a failed job with the last lines of its pod."""
    return objects(batch(conditions=FAILED, failed=retries + 1), [ended(code, reason)], logs={"w-a": log.encode()})


def refused(message: str, **more: Any) -> JobObjects:
    """Return a job whose controller cannot create pods."""
    return objects(
        batch(), events=[event(batch(), "FailedCreate", f'pods "w-x" is forbidden: {message}', kind="Job")], **more
    )


def finding(about: str, state: Any, text: str) -> PreflightFinding:
    """Return the finding about a claim or a queue."""
    return PreflightFinding(about, state, text)


DISRUPTED = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "preempting"}
LOST = [
    {"type": "PodScheduled", "status": "True", "lastTransitionTime": at(900)},
    {"type": "ContainersReady", "status": "True", "lastTransitionTime": at(800)},
    {"type": "Ready", "status": "False", "lastTransitionTime": at(120)},
]
FIRST = 'failed rank=1 device=npu:1 cause="ValueError: no such class"'
OOM = '[node 0 #9] failed rank=0 device=cpu:0 cause="killed by SIGKILL (out of memory?)"\n'

CASES: dict[str, tuple[JobObjects, str, str]] = {
    "no node has the resource": (
        objects(batch(), [unplaced()], nodes=[node("a", npus=0), node("b", npus=0)]),
        "resource-missing",
        f"no node of the cluster has {NPU}",
    ),
    "enough in total but not on one node": (
        objects(batch(npus=16), [unplaced(npus=16)]),
        "node-too-small",
        f"a pod asks for 16 {NPU}, and no node has more than 8; the nodes have 16 in all, but a pod cannot use two",
    ),
    "free NPUs on several nodes, but too few on each": (
        objects(batch(), [unplaced()], others=[running("x", "a", 4), running("y", "b", 4)]),
        "devices-in-use",
        f"8 of 16 {NPU} are free, but no node has 8 together: job x uses 4, job y uses 4",
    ),
    "NPUs held by a job that ends soon": (
        objects(
            batch(),
            [unplaced()],
            others=[running("x", "a"), running("y", "b")],
            until={"job x": NOW + 600},
        ),
        "devices-in-use",
        f"all 16 {NPU} that the job could have are in use: job x uses 8 until about {clock_time(NOW + 600)}, job y",
    ),
    "taint": (
        objects(batch(), [unplaced()], nodes=[node("a", taints=[TAINT]), node("b", taints=[TAINT])]),
        "taint",
        "a, b are tainted npu=busy:NoSchedule, and take no pod of the job",
    ),
    "taint, seen by the scheduler only": (
        objects(batch(), [unplaced("0/2 nodes are available: 2 node(s) had untolerated taint(s)")], nodes=None),
        "taint",
        "2 node(s) had untolerated taint(s)",
    ),
    "cordoned": (
        objects(batch(), [unplaced()], nodes=[node("a", unschedulable=True)]),
        "cordoned",
        "a is cordoned, and takes no pod",
    ),
    "node not ready": (
        objects(batch(), [unplaced()], nodes=[node("a", ready="Unknown")]),
        "node-not-ready",
        "a is not ready",
    ),
    "node selector": (
        objects(batch(nodeSelector={"zone": "c"}), [unplaced()], nodes=[node("a", labels={"zone": "a"})]),
        "node-selector",
        f"no node with {NPU} has the labels that the job selects (zone=c): zone is a",
    ),
    "unhealthy device": (
        objects(batch(), [unplaced()], nodes=[node("a", healthy=7)]),
        "unhealthy-npu",
        f"a has only 7 of 8 {NPU} healthy",
    ),
    "gang cannot fit": (
        objects(volcano(nodes=3, **ANTI), gang=QUEUED, queue=finding("queue default", "ok", "open")),
        "gang-too-large",
        f"room for 3 pods with 8 {NPU} and 64Gi memory and 8 cpu each at the same time, and only 2 nodes are large",
    ),
    "gang waits for a second node": (
        objects(
            volcano(nodes=2, **ANTI),
            gang=QUEUED,
            queue=finding("queue default", "ok", "open"),
            others=[running("x", "a")],
        ),
        "devices-in-use",
        f"room for 2 pods with 8 {NPU} at the same time, and 1 fit on 2 nodes now: job x uses 8",
    ),
    "queue missing": (
        objects(
            volcano(),
            gang=QUEUED,
            queue=finding("queue none", "missing", "--queue none: there is no such queue in here"),
        ),
        "queue",
        "there is no such queue",
    ),
    "queue full": (
        objects(
            volcano(),
            gang=QUEUED,
            queue=finding("queue default", "ok", "open"),
            events=[event(QUEUED, "Unschedulable", "queue resource quota insufficient: insufficient cpu", normal=True)],
        ),
        "queue",
        "queue default has no room for the job now: queue resource quota insufficient: insufficient cpu",
    ),
    "queue over its capability": (
        objects(
            volcano(),
            gang=QUEUED,
            queue=finding("queue default", "later", "--queue default: capability is 4: it would"),
        ),
        "queue",
        "capability is 4",
    ),
    "Kueue's queue": (objects(batch(), queued="queued in npus, 3 of 7: no room"), "queue", "queued in npus, 3 of 7"),
    "quota": (refused("exceeded quota: team, requested: pods=1, used: pods=2, limited: pods=2"), "quota", "team"),
    "limit range": (refused("maximum cpu usage per Container is 2, but limit is 96"), "limit-range", "limit is 96"),
    "Pod Security": (refused('violates PodSecurity "restricted:latest": host namespaces'), "pod-security", "violates"),
    "service account missing": (
        refused('error looking up service account t/none: serviceaccount "none" not found'),
        "service-account",
        '"none" not found',
    ),
    "priority class missing": (refused("no PriorityClass with name nosuch was found"), "priority-class", "nosuch"),
    "claim missing": (
        objects(
            batch(),
            [unplaced('0/2 nodes are available: persistentvolumeclaim "none" not found.')],
            claims=[finding("claim none", "missing", "--data-claim none: there is no such claim in namespace t")],
        ),
        "claim",
        "--data-claim none: there is no such claim",
    ),
    "claim unbound": (
        objects(
            batch(),
            [unplaced("0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims.")],
            claims=[finding("claim d", "missing", "--data-claim d: it is not bound (no storage class)")],
        ),
        "claim",
        "--data-claim d: it is not bound",
    ),
    "claim for one pod only": (
        objects(
            batch(), [unplaced("1 node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod")]
        ),
        "claim",
        "another pod uses a claim that only one pod at a time can use",
    ),
    "claim on another node": (
        objects(
            batch(),
            [mounting := pod(on="a")],
            events=[event(mounting, "FailedAttachVolume", "Multi-Attach error for v")],
        ),
        "claim",
        "its access mode allows one node only",
    ),
    "volume that cannot be mounted": (
        objects(batch(), [mounting], events=[event(mounting, "FailedMount", 'configmap "x" not found')]),
        "volume",
        'configmap "x" not found',
    ),
    "image not in the registry": (
        objects(batch(), [held("ErrImagePull", "failed to resolve reference r/pnas:1: not found")]),
        "image",
        "node a cannot get the image r/pnas:1: the registry has no such image",
    ),
    "image without a login": (
        objects(batch(), [held("ImagePullBackOff", "pull access denied, authorization failed")]),
        "image",
        "the registry refuses the node's login",
    ),
    "image that no registry gives": (
        objects(batch(), [held("ErrImageNeverPull", "is not present with pull policy of Never")]),
        "image",
        "--image-pull-policy Never pulls no image",
    ),
    "image of another processor, refused by the registry": (
        objects(batch(), [held("ErrImagePull", "no match for platform in manifest: not found")]),
        "architecture",
        "it is built for another processor than the node's",
    ),
    "image of another processor": (
        objects(batch(conditions=FAILED), [ended(255)], logs={"w-a": b"exec /entrypoint.sh: exec format error\n"}),
        "architecture",
        "exec format error",
    ),
    "wrong entry point": (
        objects(
            batch(conditions=FAILED),
            [
                ended(
                    128,
                    "StartError",
                    'unable to start container process: exec: "x": executable file not found in $PATH',
                )
            ],
        ),
        "entry-point",
        'exec: "x": executable file not found in $PATH',
    ),
    "secret missing": (
        objects(batch(), [held("CreateContainerConfigError", 'secret "keys" not found')]),
        "missing-object",
        "an object that the pod names does not exist",
    ),
    "scheduler missing": (
        objects(batch(), [pod(spec={"schedulerName": "nobody"})]),
        "scheduler",
        "no scheduler named nobody has looked at it",
    ),
    "Volcano's controller missing": (objects(volcano(phase="")), "controller", "Volcano's controller has not looked"),
    "Volcano's scheduler missing": (
        objects(volcano(), gang={**GANG, "status": {}}),
        "controller",
        "Volcano's scheduler has not looked",
    ),
    "suspended": (
        objects(batch() | {"spec": {**batch()["spec"], "suspend": True}}),
        "suspended",
        "the job is suspended",
    ),
    "rank table without the device plugin": (
        waits_for_table({}, INITIALIZING),
        "rank-table",
        "MindCluster's device plugin has not written the devices of 1 of 1 pods, such as w-0",
    ),
    "rank table without an address": (
        waits_for_table(devices("-1"), INITIALIZING),
        "rank-table",
        "an NPU of pod w-0 has no address (-1)",
    ),
    "rank table without a controller": (
        waits_for_table(devices("10.0.0.1"), INITIALIZING),
        "rank-table",
        "MindCluster's controller does not write it",
    ),
    "rank table in an immutable ConfigMap": (
        waits_for_table({}, {**INITIALIZING, "immutable": True}),
        "rank-table",
        "is immutable",
    ),
    "rank table without its ConfigMap": (waits_for_table({}, None), "rank-table", "rings-config-w does not exist"),
    "rank table of a job without its label": (
        replace(waits_for_table({}, INITIALIZING), job=volcano(phase="Running", **TABLE)),
        "rank-table",
        "the job has no label ring-controller.atlas",
    ),
    "rank table of NPUs that are limits only": (
        replace(waits_for_table(devices("10.0.0.1"), INITIALIZING), job=limits_only()),
        "rank-table",
        "as limits only, and ascend-operator needs requests",
    ),
    "rank table on its way": (
        waits_for_table(devices("10.0.0.1"), {**INITIALIZING, "data": {"hccl.json": '{"status":"completed"}'}}),
        "rank-table",
        "a kubelet needs up to 80 s",
    ),
    "out of memory by the limit": (
        objects(batch(conditions=FAILED), [ended(137, "OOMKilled")], logs={"w-a": OOM.encode()}),
        "out-of-memory",
        "container trainer needed more memory than its limit of 64Gi",
    ),
    "out of memory on the node": (
        objects(
            batch(npus=0, conditions=FAILED),
            [ended(137, "OOMKilled", spec={}) | {"spec": pod_spec(0) | {"nodeName": "a"}}],
        ),
        "node-out-of-memory",
        "node a ran out of memory",
    ),
    "node lost": (
        objects(batch(), [pod(phase="Running", on="a") | {"status": {"phase": "Running", "conditions": LOST}}]),
        "node-lost",
        "node a has not answered since",
    ),
    "evicted": (
        objects(
            batch(conditions=FAILED),
            [pod(phase="Failed", on="a", reason="Evicted", message="The node was low on resource: memory.")],
        ),
        "evicted",
        "node a evicted pod w-a: The node was low on resource: memory",
    ),
    "preempted": (
        objects(batch(conditions=FAILED), [ended(75) | {"status": {**ended(75)["status"], "conditions": [DISRUPTED]}}]),
        "preempted",
        "the scheduler ended it for a pod of higher priority",
    ),
    "preempted, and waiting": (
        objects(
            batch(),
            [unplaced(name="w-b")],
            others=[running("x", "a"), running("y", "b")],
            events=[event(pod("w-a"), "Preempted", "Preempted by pod x on node a")],
        ),
        "devices-in-use",
        "job x uses 8",
    ),
    "not admitted by the node": (
        objects(
            batch(conditions=FAILED),
            [
                pod(
                    phase="Failed",
                    on="a",
                    reason="UnexpectedAdmissionError",
                    message="Allocate failed: no healthy devices",
                )
            ],
        ),
        "admission",
        "node a did not admit pod w-a",
    ),
    "past its deadline": (objects(batch(conditions=LATE), [ended(75)]), "deadline", "longer than its --deadline"),
    "crash loop": (
        failed_with(f"[node 0 #4] {FIRST}\n", retries=3),
        "crash-loop",
        "rank 1 on npu:1: ValueError: no such class (the last of 4 tries)",
    ),
    "first failing rank": (
        failed_with(f"[node 0 #4] {FIRST}\n"),
        "first-failure",
        "rank 1 on npu:1: ValueError: no such",
    ),
    "settings that the trainer refuses": (
        failed_with("error: --data-path /data: no such folder\n", code=2),
        "refused-settings",
        "--data-path /data: no such folder",
    ),
    "an error of HCCL": (
        failed_with(
            "[rank 3 npu:3 #8] EI0002: the wait of the Notify register times out\n"
            "[rank 5 npu:5 #9] [ERROR] ERR02200 DIST EI0013: error cqe\n"
            '[node 0 #9] failed rank=5 device=npu:5 cause="HCCL failed in HcclAllReduce: its own words follow"\n'
        ),
        "device-error",
        "rank 5 on npu:5: the network between two devices lost a transfer (EI0013)",
    ),
    "pod that failed without words": (failed_with("", code=3), "pod-failed", "pod w-a failed: exit code 3"),
    "job that failed without pods": (objects(batch(conditions=FAILED)), "job-failed", "BackoffLimitExceeded: m"),
    "MindCluster's words about a pod": (
        objects(volcano(), [unplaced("npu topology not meet job require,network unhealthy card is [ 3 ]")]),
        "mindcluster",
        "not connected as the job needs them",
    ),
    "MindCluster's report": (
        objects(volcano(), gang=QUEUED, queue=finding("q", "ok", "open"), report="JobValidateFailed: npu num of 3"),
        "mindcluster",
        "MindCluster reports: JobValidateFailed: npu num of 3",
    ),
    "other words of the scheduler": (
        objects(batch(), [unplaced("0/2 nodes are available: 2 node(s) didn't satisfy pod topology spread.")]),
        "scheduler-words",
        "didn't satisfy pod topology spread",
    ),
}


@pytest.mark.parametrize(("seen", "rule", "text"), CASES.values(), ids=CASES)
def test_the_first_cause_is_what_the_objects_show(seen: JobObjects, rule: str, text: str) -> None:
    causes = find_causes(seen)
    assert causes, "no cause"
    assert causes[0].rule == rule, causes
    assert text in causes[0].text
    assert causes[0].steps, "the user learns what to do"
    for cause in causes:
        assert "\n" not in cause.text + "".join((*cause.evidence, *cause.steps))


RUNS = pod(phase="Running", on="a", containerStatuses=[{"name": "trainer", "state": {"running": {}}}])
YOUNG = pod(age=1)
NOTHING: dict[str, JobObjects] = {
    "a young pod": objects(batch(), [YOUNG]),
    "a pod whose image is being pulled": objects(batch(), [held("ContainerCreating", "")]),
    "a running job": objects(batch(), [RUNS]),
    "an event of an earlier try of the scheduler": objects(
        batch(), [RUNS], events=[event(RUNS, "FailedScheduling", f"0/2 nodes are available: 2 Insufficient {NPU}.")]
    ),
    "a mount that has succeeded since": objects(batch(), [RUNS], events=[event(RUNS, "FailedMount", "timed out")]),
    "a mount that failed before the pod got this node": objects(
        batch(), [late := pod(on="a", age=20)], events=[event(late, "FailedMount", "timed out", ago=40)]
    ),
    "a mount of another pod of the same name": objects(
        batch(),
        [late],
        events=[event(late | {"metadata": {**late["metadata"], "uid": "old"}}, "FailedMount", "timed out")],
    ),
    "a refusal before the pods were created": replace(
        refused("exceeded quota: team, requested: pods=1, used: pods=2, limited: pods=2"), pods=[RUNS]
    ),
    "a refusal that a later creation contradicts": objects(
        batch(),
        events=[
            event(batch(), "FailedCreate", 'pods "w-x" is forbidden: exceeded quota: q', kind="Job", ago=60),
            event(batch(), "SuccessfulCreate", "Created pod: w-y", kind="Job", ago=20, normal=True),
        ],
    ),
    "the wait for a rank table that is over": waits_for_table(
        {}, INITIALIZING, WAITS + b"[rank 0 npu:0 #9] step step=1\n"
    ),
    "a success": objects(batch(conditions=({"type": "Complete", "status": "True"},)), [pod(phase="Succeeded", on="a")]),
    "a warning of Volcano in a healthy start": objects(
        volcano(phase="Running"),
        [RUNS],
        gang={**GANG, "status": {"phase": "Running"}},
        events=[event(GANG, "Unschedulable", "0/1 tasks in gang unschedulable: pod group is ready, 1 Binding")],
    ),
}


@pytest.mark.parametrize("seen", NOTHING.values(), ids=NOTHING)
def test_a_fact_that_is_over_is_no_cause(seen: JobObjects) -> None:
    assert find_causes(seen) == []


def test_what_happened_before_comes_after_what_keeps_the_job_now() -> None:
    seen, _, _ = CASES["preempted, and waiting"]
    assert [cause.rule for cause in find_causes(seen)] == ["devices-in-use", "preempted"]


def test_an_error_that_only_follows_from_another_ranks_comes_last() -> None:
    seen, _, _ = CASES["an error of HCCL"]
    assert [cause.text.partition(": ")[0] for cause in find_causes(seen)] == ["rank 5 on npu:5"] * 2 + [
        "rank 3 on npu:3"
    ]


def test_a_cause_is_told_once() -> None:
    two = objects(batch(pods=2), [held("ErrImagePull", "not found"), held("ErrImagePull", "not found")])
    assert [cause.rule for cause in find_causes(two)] == ["image"]
    assert isinstance(find_causes(two)[0], Cause)


# The recorded cluster had one node of eight NPUs. None: the recorded job is well, or it ended as it should.
RECORDED: dict[str, str] = {
    "aborted-by-command": "suspended",
    "any-event-abort": "suspended",
    "partial-minavailable-1-of-3": "devices-in-use",
    "gang-pending": "gang-too-large",
    "gang-pending-requests": "gang-too-large",
    "nodeselector-mismatch": "node-selector",
    "one-pod-asks-16-of-8": "node-too-small",
    "queue-capability-too-small": "queue",
    "second-job-waits": "devices-in-use",
    "second-job-waits-requests-set": "devices-in-use",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_job_of_a_real_volcano_gets_no_wrong_cause(name: str) -> None:
    sample = read_sample(name)
    rules = set()
    for job in sample["jobs"]:
        mine = pods_of(job, sample)
        gang = next(
            (group for group in sample["groups"] if group["metadata"]["name"].endswith(job["metadata"]["uid"])), None
        )
        small = {"apiVersion": "v1", "metadata": {"name": "q"}, "spec": {"capability": {"cpu": "5m"}}}
        capability = check_queue(
            job["spec"]["queue"],
            small if name == "queue-capability-too-small" else {"metadata": {}, "spec": {}},
            PodNeeds(job["spec"]["tasks"][0]["template"]["spec"], job["spec"]["minAvailable"], ""),
            hidden="",
            origin="here",
        )
        seen = JobObjects(
            VOLCANO,
            job,
            mine,
            (unix_time(job["metadata"]["creationTimestamp"]) or 0) + 60,
            gang,
            nodes=[node("node1")],
            others=[pod for pod in sample["pods"] if pod not in mine],
            queue=None if mine else capability,
        )
        causes = find_causes(seen)
        rules |= {cause.rule for cause in causes[:1]} if not seen.phase.ended else set()
        if seen.phase is Phase.FAILED:
            assert {cause.rule for cause in causes} <= {"pod-failed", "job-failed"}, causes
    assert rules == ({RECORDED[name]} if name in RECORDED else set())
