"""Why a job waits: each rule finds its cause in objects that show it, and none in objects that do not, by one table."""

from dataclasses import replace
from typing import Any

import pytest

from launcher.cluster.causes import find_causes
from launcher.cluster.job_objects import JobObjects
from launcher.jobs import Cause, PreflightFinding
from launcher.kinds.objects import clock_time
from launcher.kube.api import Json
from tests.unit.launcher.explained_objects import (
    GANG,
    NOW,
    Case,
    at,
    batch,
    check_first_cause,
    event,
    held,
    objects,
    pod,
    running,
    unplaced,
    volcano,
)
from tests.unit.launcher.test_doctor import NPU, node

TAINT = {"key": "npu", "value": "busy", "effect": "NoSchedule"}
ANTI: dict[str, Any] = {"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{}]}}}
OPEN = PreflightFinding("queue default", "ok", "open")
QUEUED = {**GANG, "status": {"phase": "Pending"}}
LOST = [
    {"type": "PodScheduled", "status": "True", "lastTransitionTime": at(900)},
    {"type": "ContainersReady", "status": "True", "lastTransitionTime": at(800)},
    {"type": "Ready", "status": "False", "lastTransitionTime": at(120)},
]


def uses_memory(owner: str, on: str) -> Json:
    """Return a pod of another job that holds most of a node's memory."""
    holder = running(owner, on, 0)
    holder["spec"]["containers"] = [{"name": "trainer", "resources": {"requests": {"memory": "512000001Ki"}}}]
    return holder


def refused(message: str, **more: Any) -> JobObjects:
    """Return a job whose controller cannot create pods."""
    return objects(
        batch(), events=[event(batch(), "FailedCreate", f'pods "w-x" is forbidden: {message}', kind="Job")], **more
    )


CASES: dict[str, Case] = {
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
    "memory held by other jobs": (
        objects(
            batch(npus=0, containers=[{"name": "trainer", "resources": {"requests": {"memory": "512Gi"}}}]),
            [unplaced("0/2 nodes are available: 2 Insufficient memory.")],
            others=[uses_memory("x", "a"), uses_memory("y", "b")],
        ),
        "resources-in-use",
        "559.4Gi of 1536Gi memory are free, but no node has 512Gi together: job x uses 488.2Gi, job y uses 488.2Gi",
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
        objects(volcano(nodes=3, **ANTI), gang=QUEUED, queue=OPEN),
        "gang-too-large",
        f"room for 3 pods with 8 {NPU} and 64Gi memory and 8 cpu each at the same time, and only 2 nodes are large",
    ),
    "gang waits for a second node": (
        objects(
            volcano(nodes=2, **ANTI),
            gang=QUEUED,
            queue=OPEN,
            others=[running("x", "a")],
        ),
        "devices-in-use",
        f"room for 2 pods with 8 {NPU} at the same time, and 1 fit on 2 nodes now: job x uses 8",
    ),
    "queue missing": (
        objects(
            volcano(),
            gang=QUEUED,
            queue=PreflightFinding("queue none", "missing", "--queue none: there is no such queue in here"),
        ),
        "queue",
        "there is no such queue",
    ),
    "closed queue": (
        objects(
            volcano(),
            gang=QUEUED,
            queue=PreflightFinding("queue default", "missing", "--queue default: it is Closed and takes no jobs"),
        ),
        "queue",
        "it is Closed and takes no jobs",
    ),
    "queue full": (
        objects(
            volcano(),
            gang=QUEUED,
            queue=OPEN,
            events=[event(QUEUED, "Unschedulable", "queue resource quota insufficient: insufficient cpu", normal=True)],
        ),
        "queue",
        "queue default has no room for the job now: queue resource quota insufficient: insufficient cpu",
    ),
    "queue over its capability": (
        objects(
            volcano(),
            gang=QUEUED,
            queue=PreflightFinding("queue default", "later", "--queue default: capability is 4: it would"),
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
    "runtime class missing": (
        refused('pod rejected: RuntimeClass "nosuch" not found'),
        "runtime-class",
        'RuntimeClass "nosuch" not found',
    ),
    "policy of the cluster": (
        refused("ValidatingAdmissionPolicy 'p' with binding 'p' denied request: no such job"),
        "pod-refused",
        "denied request: no such job",
    ),
    "claim missing": (
        objects(
            batch(),
            [unplaced('0/2 nodes are available: persistentvolumeclaim "none" not found.')],
            claims=[PreflightFinding("claim none", "missing", "--data-claim none: there is no such claim")],
        ),
        "claim",
        "--data-claim none: there is no such claim",
    ),
    "claim unbound": (
        objects(
            batch(),
            [unplaced("0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims.")],
            claims=[PreflightFinding("claim d", "missing", "--data-claim d: it is not bound (no storage class)")],
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
    "volume on another node": (
        objects(
            batch(), [unplaced("0/2 nodes are available: 2 node(s) didn't match PersistentVolume's node affinity")]
        ),
        "claim",
        "a volume is on a node that the pod cannot use",
    ),
    "volume on another node, in older words": (
        objects(batch(), [unplaced("0/2 nodes are available: 2 node(s) had volume node affinity conflict.")]),
        "claim",
        "a volume is on a node that the pod cannot use",
    ),
    "volume on another node, and another claim that is missing": (
        objects(
            batch(),
            [unplaced("0/2 nodes are available: 2 node(s) had volume node affinity conflict.")],
            claims=[PreflightFinding("claim c", "missing", "--data-claim c: there is no such claim")],
        ),
        "claim",
        "a volume is on a node that the pod cannot use; --data-claim c: there is no such claim",
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
    "claim on another node, for which the kubelet waits": (
        objects(
            batch(),
            [mounting],
            events=[
                event(mounting, "FailedAttachVolume", "Multi-Attach error for v", ago=40),
                event(mounting, "FailedMount", "timed out waiting for the condition"),
            ],
        ),
        "claim",
        "its access mode allows one node only",
    ),
    "volume that cannot be mounted after it was attached": (
        objects(
            batch(),
            [mounting],
            events=[
                event(mounting, "FailedAttachVolume", "Multi-Attach error for v", ago=40),
                event(mounting, "SuccessfulAttachVolume", "attached", ago=35, normal=True),
                event(mounting, "FailedMount", 'configmap "x" not found'),
            ],
        ),
        "volume",
        'configmap "x" not found',
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
    "image whose name is not valid": (
        objects(batch(), [held("InvalidImageName", "couldn't parse image name")]),
        "image",
        "its name is not valid",
    ),
    "image whose registry is out of reach": (
        objects(batch(), [held("ErrImagePull", "failed to do request: dial tcp: lookup r: no such host")]),
        "image",
        "the node cannot reach the registry",
    ),
    "image whose user is root": (
        objects(batch(), [held("CreateContainerConfigError", "container has runAsNonRoot and image will run as root")]),
        "pod-security",
        "the image's user is root",
    ),
    "container that the node cannot start": (
        objects(batch(), [held("CreateContainerError", "context deadline exceeded")]),
        "container",
        "container trainer cannot start: the node says context deadline exceeded",
    ),
    "container that ends again and again": (
        objects(batch(), [held("CrashLoopBackOff", "back-off 10s restarting failed container")]),
        "crash-loop",
        "container trainer ends again and again",
    ),
    "image of another processor, refused by the registry": (
        objects(batch(), [held("ErrImagePull", "no match for platform in manifest: not found")]),
        "architecture",
        "it is built for another processor than the node's",
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
    "pods that nobody has made": (
        objects(volcano(), gang={**GANG, "status": {"phase": "Inqueue"}}, queue=OPEN),
        "no-pods",
        "Volcano has admitted it, and has made no pods",
    ),
    "suspended": (
        objects(batch() | {"spec": {**batch()["spec"], "suspend": True}}),
        "suspended",
        "the job is suspended",
    ),
    "node lost": (
        objects(batch(), [pod(phase="Running", on="a") | {"status": {"phase": "Running", "conditions": LOST}}]),
        "node-lost",
        "node a has not answered since",
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
    "MindCluster's words about a pod": (
        objects(volcano(), [unplaced("npu topology not meet job require,network unhealthy card is [ 3 ]")]),
        "mindcluster",
        "not connected as the job needs them",
    ),
    "MindCluster's report": (
        objects(volcano(), gang=QUEUED, queue=OPEN, report="JobValidateFailed: npu num of 3"),
        "mindcluster",
        "MindCluster reports: JobValidateFailed: npu num of 3",
    ),
    "other words of the scheduler": (
        objects(batch(), [unplaced("0/2 nodes are available: 2 node(s) didn't satisfy pod topology spread.")]),
        "scheduler-words",
        "didn't satisfy pod topology spread",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_first_cause_is_what_the_objects_show(case: Case) -> None:
    check_first_cause(case)


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


def test_a_cause_is_told_once() -> None:
    two = objects(batch(pods=2), [held("ErrImagePull", "not found"), held("ErrImagePull", "not found")])
    assert [cause.rule for cause in find_causes(two)] == ["image"]
    assert isinstance(find_causes(two)[0], Cause)
