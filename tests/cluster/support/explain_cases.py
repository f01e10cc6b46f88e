"""Jobs that something keeps from running, or ends, and that need no Volcano: what is wrong with each, and its cause."""

from typing import Any, NamedTuple

from tests.cluster.support import explain_faults
from tests.cluster.testbed.artifacts import images
from tests.cluster.testbed.npus.device_plugin import RESOURCE
from tests.cluster.testbed.registry import ADDRESS as REGISTRY

OTHER_NPU, LICENCE = "huawei.com/Ascend310P", "example.com/licence"
HCCL = "[rank 3 npu:3 #8] EI0013: An error CQE occurred during operator execution"
FAILED = '[node 0 #9] failed rank=1 device=cpu:1 cause=\\"ValueError: no such class\\"'


class Case(NamedTuple):
    """A job by the arguments of `ExplainedJobs.create`, the rule that finds its cause first, and a part of its text.

    A job without a rule is there for the others.
    """

    words: dict[str, Any]
    rule: str = ""
    text: str = ""


def alone(job: str) -> dict[str, Any]:
    """Return a pod's part by which two pods of the job need two nodes."""
    term = {"labelSelector": {"matchLabels": {"pnas/job": job}}, "topologyKey": "kubernetes.io/hostname"}
    return {"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}}


def with_volume(volume: dict[str, Any], **container: Any) -> dict[str, Any]:
    """Return arguments of `create` for a pod that mounts a volume."""
    mount = {"volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]}
    return {"pod": {"volumes": [{"name": "scratch", **volume}]}, "container": {**mount, **container}}


def claim(name: str) -> dict[str, Any]:
    """Return arguments of `create` for a pod that needs a claim."""
    return with_volume({"persistentVolumeClaim": {"claimName": name}})


def image(name: str, policy: str = "IfNotPresent") -> dict[str, Any]:
    """Return arguments of `create` for a pod of this image."""
    return {"container": {"image": name, "imagePullPolicy": policy}}


BY_ROOT = {"securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}}
SPREAD = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}
PREPARE = {
    "name": "prepare",
    "image": images.TRAINER,
    "imagePullPolicy": "Never",
    "command": ["sh", "-c", "exit 3"],
    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    "resources": {"requests": {"cpu": "10m"}, "limits": {"cpu": "1"}},
}
CASES = {
    "absent": Case(
        {"amounts": {OTHER_NPU: "1"}},
        "resource-missing",
        f"no node of the cluster has {OTHER_NPU}; they have {RESOURCE}",
    ),
    "large": Case({"npus": 16}, "node-too-small", "the nodes have 16 in all, but a pod cannot use two nodes"),
    "busy": Case(
        {"npus": 8},
        "devices-in-use",
        f"only 4 of 16 {RESOURCE} are free, and a pod asks for 8: job holder uses 8 until about ",
    ),
    "nowhere": Case(
        {"npus": 1, "pod": {"nodeSelector": {"zone": "nowhere"}}},
        "node-selector",
        f"no node with {RESOURCE} has the labels that the job selects (zone=nowhere)",
    ),
    "wide": Case(
        {"pod": alone("wide"), "job": {"parallelism": 3, "completions": 3}},
        "gang-too-large",
        "the job needs room for 3 pods",
    ),
    "spread": Case(
        {"pod": {"topologySpreadConstraints": [SPREAD]}}, "scheduler-words", "pod topology spread constraints"
    ),
    "unseen": Case({"pod": {"schedulerName": "nobody"}}, "scheduler", "no scheduler named nobody has looked at it"),
    "licensed": Case(
        {"amounts": {LICENCE: "1"}}, "quota", "exceeded quota: team, requested: requests.example.com/licence=1"
    ),
    "greedy": Case(
        {"amounts": {"cpu": "96"}, "container": {"resources": {"limits": {"cpu": "96"}}}},
        "limit-range",
        "maximum cpu usage per Container is 64, but limit is 96",
    ),
    "insecure": Case({"pod": {"hostNetwork": True}}, "pod-security", "host namespaces (hostNetwork=true)"),
    "rooted": Case({**image(images.PAUSE, "Never"), "pod": BY_ROOT}, "pod-security", "the image's user is root"),
    "accountless": Case({"pod": {"serviceAccountName": "none"}}, "service-account", 'serviceaccount "none" not found'),
    "unimportant": Case(
        {"pod": {"priorityClassName": "nosuch"}}, "priority-class", "no PriorityClass with name nosuch"
    ),
    "classless": Case({"pod": {"runtimeClassName": "nosuch"}}, "runtime-class", 'RuntimeClass "nosuch" not found'),
    "unwanted": Case({}, "pod-refused", explain_faults.POLICY_MESSAGE),
    "unclaimed": Case(claim("none"), "claim", "the pods name the claim none"),
    "unbound": Case(claim("unbound"), "claim", "has no volume yet"),
    "misplaced": Case({**claim("local"), "node": 2}, "claim", "a volume is on a node that the pod cannot use"),
    "single": Case({**claim("one-pod"), "node": 1}),
    "attached": Case(
        {**claim("disk"), "node": 1},
        "volume",
        f"driver name {explain_faults.DRIVER} not found in the list of registered CSI drivers",
    ),
    "unmounted": Case(with_volume({"configMap": {"name": "none"}}), "volume", 'configmap "none" not found'),
    "unreachable": Case(image("registry.invalid/none:1"), "image", "the node cannot reach the registry"),
    "unloaded": Case(image("localhost/none:1", "Never"), "image", "--image-pull-policy Never pulls no image"),
    "illnamed": Case(image("registry.invalid/UPPER:1"), "image", "its name is not valid"),
    "missing": Case({**image(f"{REGISTRY}/missing:1"), "node": 1}, "image", "the registry has no such image"),
    "private": Case({**image(f"{REGISTRY}/private:1"), "node": 1}, "image", "the registry refuses the node's login"),
    "other": Case(
        {**image(f"{REGISTRY}/other:1"), "node": 1},
        "architecture",
        "it is built for another processor than the node's",
    ),
    "foreign": Case(
        with_volume({"configMap": {"name": "program", "defaultMode": 0o755}}, command=["/scratch/prog"]),
        "architecture",
        "exec format error",
    ),
    "misnamed": Case(
        {"container": {"command": ["nosuchprogram"]}}, "entry-point", '"nosuchprogram": executable file not found'
    ),
    "secretive": Case(
        {"container": {"envFrom": [{"secretRef": {"name": "none"}}]}},
        "missing-object",
        "an object that the pod names does not exist",
    ),
    "unresolved": Case(
        with_volume({"emptyDir": {}}, volumeMounts=[{"name": "scratch", "mountPath": "/x", "subPathExpr": "$(NONE)"}]),
        "container",
        "container trainer cannot start: the node says ",
    ),
    "prepared": Case(
        {"pod": {"initContainers": [PREPARE], "restartPolicy": "OnFailure"}, "job": {"backoffLimit": 6}},
        "crash-loop",
        "container prepare ends again and again",
    ),
    "hungry": Case(
        {"script": explain_faults.EATS_MEMORY, "amounts": {"memory": "32Mi"}},
        "out-of-memory",
        "needed more memory than its limit of 32Mi",
    ),
    "starved": Case(
        {"script": explain_faults.EATS_MEMORY_LATER},
        "node-out-of-memory",
        "ran out of memory, and the kernel killed container trainer",
    ),
    "wasteful": Case(
        {
            **with_volume({"emptyDir": {"sizeLimit": "1Mi"}}),
            "script": "head -c 40M /dev/zero > /scratch/x; sleep 3600",
        },
        "evicted",
        "evicted pod wasteful-",
    ),
    "crashes": Case(
        {"script": f'echo "{FAILED}"; exit 1', "job": {"backoffLimit": 1}},
        "crash-loop",
        "rank 1 on cpu:1: ValueError: no such class (the last of 2 tries)",
    ),
    "words": Case(
        {"script": f'echo "{FAILED}"; exit 1'}, "first-failure", "rank 1 on cpu:1: ValueError: no such class"
    ),
    "refused": Case(
        {"script": "echo 'error: --lr 0: must be larger than 0'; exit 2"},
        "refused-settings",
        "--lr 0: must be larger than 0",
    ),
    "hccl": Case(
        {"script": f"echo '{HCCL}'; exit 1"},
        "device-error",
        "rank 3 on npu:3: the network between two devices lost a transfer (EI0013)",
    ),
    "wordless": Case({"script": "exit 3"}, "pod-failed", "exit code 3"),
    "bygone": Case({"script": "exit 3"}, "job-failed", "BackoffLimitExceeded"),
    "late": Case({"job": {"activeDeadlineSeconds": 3}}, "deadline", "the job ran longer than its --deadline allows"),
    "stopped": Case({"job": {"suspend": True}}, "suspended", "the job is suspended"),
}
LATER_CASES = {
    "shut-out": Case(
        {**claim("one-pod"), "node": 1},
        "claim",
        "another pod uses a claim that only one pod at a time can use",
    ),
    "moved": Case(
        {**claim("disk"), "node": 2},
        "claim",
        "a claim is in use on another node, and its access mode allows one node only",
    ),
    # Another scheduler, or none, has given it to this node, which has no free NPU.
    "unadmitted": Case({"npus": 8, "pod": {"nodeName": "node1"}}, "admission", "node1 did not admit pod unadmitted-"),
}
