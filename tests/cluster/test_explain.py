"""`explain` on a real cluster: each rule finds its cause in the words of the real components, many jobs at once."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher.cluster.explain import read_objects
from launcher.cluster.job_objects import uses_node
from launcher.cluster.jobs import ClusterJobs
from launcher.jobs import Cause, Explanation, JobRef
from launcher.kube.access import ClusterAccess
from tests.cluster.support.terminal import POD, SMALL, Terminal, job_claims, own_namespace
from tests.cluster.support.waiting import until
from tests.cluster.test_doctor import existing, quota, unhealthy_chips
from tests.cluster.test_volcano_jobs import closing
from tests.cluster.testbed import storage
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.npus.device_plugin import RESOURCE
from tests.cluster.testbed.volcano.install import SCHEDULER, Volcano

RECORDINGS = "PNAS_EXPLAIN_RECORDINGS"
"""Names a folder that gets the objects of each case, so that unit tests can use them."""
THE_TRAINER = "the program of the manifest"
OTHER_NPU, LICENCE = "huawei.com/Ascend310P", "example.com/licence"
UNREAD = {
    "managedFields",
    "images",
    "volumeMounts",
    "env",
    "securityContext",
    "nodeInfo",
    "pnas/spec",
    "imageID",
    "containerID",
}
HCCL = "[rank 3 npu:3 #8] EI0013: An error CQE occurred during operator execution"
FAILED = '[node 0 #9] failed rank=1 device=cpu:1 cause=\\"ValueError: no such class\\"'
LEFT = "[rank 0 npu:0 #1] progress done=0.3 left_s=600 left_low_s=500 left_high_s=700"


@pytest.fixture(scope="module")
def terminal(cluster: Cluster, volcano: Volcano, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """Return a terminal in one namespace with both claims and Pod Security, in which Volcano acts."""
    home = tmp_path_factory.mktemp("home")
    labels = [f"{name}={value}" for name, value in volcano.labels.items()]
    with own_namespace(cluster) as namespace, job_claims(cluster, namespace, home / "images"):
        cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted", *labels)
        yield Terminal(cluster, namespace, home, cluster.kubeconfig)


class Jobs:
    """Jobs of the launcher's own manifests, each with one change."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        access = ClusterAccess(kubeconfig=terminal.kubeconfig, namespace=terminal.namespace)
        self.backends = {name: ClusterJobs.at(name, access) for name in ("batch", "volcano")}
        self.rendered = {name: self._render(name) for name in self.backends}
        self.of: dict[str, str] = {}

    def _render(self, backend: str) -> str:
        words = (*POD, *SMALL, "--backend", backend, "--npus", "1", "--name", "placeholder", "--json")
        done = self.terminal.run("render", *words, *(("--mindcluster", "on") if backend == "volcano" else ()))
        assert done.returncode == 0, done.stderr
        return done.stdout

    def create(
        self,
        name: str,
        *,
        script: str = "sleep 3600",
        npus: int | None = None,
        amounts: dict[str, str] | None = None,
        container: dict[str, Any] | None = None,
        pod: dict[str, Any] | None = None,
        job: dict[str, Any] | None = None,
        node: int | None = None,
        nodes: int = 1,
        backend: str = "batch",
    ) -> None:
        """Create a job without NPUs that sleeps, unless the arguments say otherwise."""
        objects = json.loads(self.rendered[backend].replace("placeholder", name))["items"]
        kind = self.backends[backend].kind
        body = objects[-1]
        template: Any = body
        for key in kind.pod_template:
            template = template[key]
        spec, trainer = template["spec"], template["spec"]["containers"][0]
        asked = {"cpu": "10m", **({RESOURCE: str(npus)} if npus else {}), **(amounts or {})}
        trainer["resources"] = {
            "requests": asked,
            "limits": {key: value for key, value in asked.items() if key != "cpu"},
        }
        if script != THE_TRAINER:
            trainer |= {"command": ["sh", "-c", script], "args": [], "volumeMounts": [], "env": []}
            spec["volumes"] = []
        trainer |= container or {}
        spec |= pod or {}
        spec["terminationGracePeriodSeconds"] = 1
        if node is not None:
            spec["nodeSelector"] = {"kubernetes.io/hostname": f"node{node}"}
        if backend == "volcano":
            body["spec"]["minAvailable"] = nodes
            body["spec"]["tasks"][0] |= {"replicas": nodes, "minAvailable": nodes}
        body["spec"] |= {**({"backoffLimit": 0, "podFailurePolicy": None} if backend == "batch" else {}), **(job or {})}
        for item in objects:
            item["metadata"]["namespace"] = self.terminal.namespace
            self.terminal.cluster.create(item)
        self.of[name] = backend

    def expect(self, causes: Mapping[str, tuple[str, str]]) -> None:
        """Wait until the first cause of each job has this rule, and this text in it; no job may have had another."""
        left, last = dict(causes), dict[str, Explanation]()
        rules = {name: set[str]() for name in causes}

        def all_found() -> bool:
            for name, (rule, text) in list(left.items()):
                last[name] = self.backends[self.of[name]].explain(JobRef(self.of[name], name))
                first = last[name].causes[0] if last[name].causes else Cause("", "")
                rules[name].add(first.rule)
                if first.rule == rule and text in first.text:
                    del left[name]
                    self._record(name, rule)
            return not left

        until(all_found, lambda: "\n".join(f"{name}: {last[name]}" for name in left), within_s=240, every_s=1)
        wrong = {name: rules[name] - {"", causes[name][0], *EARLIER.get(name, ())} for name in causes}
        assert not any(wrong.values()), "a wrong cause came first"

    def _record(self, name: str, rule: str) -> None:
        """Keep the objects of a case, if the user asks for it."""
        if folder := os.environ.get(RECORDINGS):
            jobs = self.backends[self.of[name]]
            objects = read_objects(jobs.api, jobs.kind, jobs.job(name), jobs.pods(name), [])
            others = None if objects.others is None else [_use(pod) for pod in objects.others if uses_node(pod)]
            values = vars(replace(objects, others=others)) | {"kind": jobs.name}
            text = json.dumps(_small({"rule": rule, **values}), default=bytes.decode)
            (Path(folder) / f"{name}.json").write_text(text + "\n")


def _use(pod: dict[str, Any]) -> dict[str, Any]:
    """Return what a pod takes of its node, and for whom."""
    meta = {key: part for key, part in pod["metadata"].items() if key in ("name", "uid", "namespace", "labels")}
    containers = [{"name": item["name"], "resources": item["resources"]} for item in pod["spec"]["containers"]]
    spec = {"nodeName": pod["spec"]["nodeName"], "containers": containers}
    return {"metadata": meta, "spec": spec, "status": {"phase": pod["status"]["phase"]}}


def _small(value: Any) -> Any:
    """Return a part of a recording without what no rule reads."""
    if isinstance(value, dict):
        return {key: _small(part) for key, part in value.items() if key not in UNREAD}
    return [_small(part) for part in value] if isinstance(value, list | tuple) else value


# Causes that are right for a moment before the last one.
EARLIER = {"crashes": ("first-failure",), "closed": ("devices-in-use",), "reported": ("devices-in-use",)}


def alone(job: str) -> dict[str, Any]:
    """Return a pod's part by which two pods of the job need two nodes."""
    term = {"labelSelector": {"matchLabels": {"pnas/job": job}}, "topologyKey": "kubernetes.io/hostname"}
    return {"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}}


def claim_volume(name: str) -> dict[str, Any]:
    """Return a pod's part that needs a claim."""
    return {"volumes": [{"name": "scratch", "persistentVolumeClaim": {"claimName": name}}]}


@contextmanager
def parts(terminal: Terminal) -> Iterator[None]:
    """Make the objects that the jobs of the first round need, or miss."""
    place, cluster = terminal.namespace, terminal.cluster
    program = {"metadata": {"name": "program", "namespace": place}, "data": {"prog": "no program"}}
    cluster.create({"apiVersion": "v1", "kind": "ConfigMap", **program}, storage.request(place, "unbound"))
    storage.claims(cluster, place, {"one-pod": cluster.folder / f"{place}-one-pod"}, modes=("ReadWriteOncePod",))
    with ExitStack() as stack:
        stack.enter_context(quota(terminal, **{f"requests.{LICENCE.replace('/', '__')}": "0"}))
        stack.enter_context(existing(terminal, "LimitRange", {"limits": [{"type": "Container", "max": {"cpu": "64"}}]}))
        yield


def create_first_round(jobs: Jobs) -> None:
    """Create the jobs of all causes that do not need changes of nodes."""
    jobs.create("holder", npus=8, node=1, script=f"echo '{LEFT}'; sleep 3600")
    jobs.create("second", npus=6, node=2)
    create = jobs.create
    create("absent", amounts={OTHER_NPU: "1"})
    create("large", npus=16)
    create("busy", npus=8)
    create("nowhere", npus=1, pod={"nodeSelector": {"zone": "nowhere"}})
    create("wide", pod=alone("wide"), job={"parallelism": 3, "completions": 3})
    create("licensed", amounts={LICENCE: "1"})
    create("greedy", amounts={"cpu": "96"}, container={"resources": {"limits": {"cpu": "96"}}})
    create("unclaimed", pod=claim_volume("none"))
    create("unbound", pod=claim_volume("unbound"))
    create("unreachable", container={"image": "registry.invalid/none:1", "imagePullPolicy": "IfNotPresent"})
    create("unloaded", container={"image": "localhost/none:1", "imagePullPolicy": "Never"})
    mount = {"volumeMounts": [{"name": "program", "mountPath": "/program"}]}
    volume = {"volumes": [{"name": "program", "configMap": {"name": "program", "defaultMode": 0o755}}]}
    create("foreign", pod=volume, container={"command": ["/program/prog"], **mount})
    create("misnamed", container={"command": ["nosuchprogram"]})
    create("insecure", pod={"hostNetwork": True})
    create("accountless", pod={"serviceAccountName": "none"})
    create("unimportant", pod={"priorityClassName": "nosuch"})
    create("unseen", pod={"schedulerName": "nobody"})
    create("secretive", container={"envFrom": [{"secretRef": {"name": "none"}}]})
    mount = {"volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]}
    create("unmounted", pod={"volumes": [{"name": "scratch", "configMap": {"name": "none"}}]}, container=mount)
    create("hungry", script="tail /dev/zero", amounts={"memory": "32Mi"})
    scratch = {"volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]}
    fill = "head -c 40M /dev/zero > /scratch/x; sleep 3600"
    create("wasteful", script=fill, pod={"volumes": SMALL_SCRATCH}, container=scratch)
    create("single", pod=claim_volume("one-pod"), node=1)
    until(lambda: jobs.terminal.pods("single")[0]["spec"].get("nodeName"))
    create("shut-out", pod=claim_volume("one-pod"), node=1)
    create("crashes", script=f'echo "{FAILED}"; exit 1', job={"backoffLimit": 1})
    create("words", script=f'echo "{FAILED}"; exit 1')
    create("refused", script="echo 'error: --lr 0: must be larger than 0'; exit 2")
    create("hccl", script=f"echo '{HCCL}'; exit 1")
    create("wordless", script="exit 3")
    create("late", job={"activeDeadlineSeconds": 3})
    create("stopped", job={"suspend": True})


SMALL_SCRATCH = [{"name": "scratch", "emptyDir": {"sizeLimit": "1Mi"}}]
FIRST_ROUND = {
    "absent": ("resource-missing", f"no node of the cluster has {OTHER_NPU}; they have {RESOURCE}"),
    "large": ("node-too-small", "the nodes have 16 in all, but a pod cannot use two nodes"),
    "busy": (
        "devices-in-use",
        "are free, and a pod asks for 8: job holder uses 8 until about ",
    ),
    "nowhere": ("node-selector", f"no node with {RESOURCE} has the labels that the job selects (zone=nowhere)"),
    "wide": ("gang-too-large", "the job needs room for 3 pods"),
    "licensed": ("quota", "exceeded quota: team, requested: requests.example.com/licence=1"),
    "greedy": ("limit-range", "maximum cpu usage per Container is 64, but limit is 96"),
    "unclaimed": ("claim", "the pods name the claim none"),
    "unbound": ("claim", "has no volume yet"),
    "shut-out": ("claim", "another pod uses a claim that only one pod at a time can use"),
    "unreachable": ("image", "the node cannot reach the registry"),
    "unloaded": ("image", "--image-pull-policy Never pulls no image"),
    "foreign": ("architecture", "exec format error"),
    "misnamed": ("entry-point", '"nosuchprogram": executable file not found'),
    "insecure": ("pod-security", "host namespaces (hostNetwork=true)"),
    "accountless": ("service-account", 'serviceaccount "none" not found'),
    "unimportant": ("priority-class", "no PriorityClass with name nosuch"),
    "unseen": ("scheduler", "no scheduler named nobody has looked at it"),
    "secretive": ("missing-object", "an object that the pod names does not exist"),
    "unmounted": ("volume", 'configmap "none" not found'),
    "hungry": ("out-of-memory", "needed more memory than its limit of 32Mi"),
    "wasteful": ("evicted", "evicted pod wasteful-"),
    "crashes": ("crash-loop", "rank 1 on cpu:1: ValueError: no such class (the last of 2 tries)"),
    "words": ("first-failure", "rank 1 on cpu:1: ValueError: no such class"),
    "refused": ("refused-settings", "--lr 0: must be larger than 0"),
    "hccl": ("device-error", "rank 3 on npu:3: the network between two devices lost a transfer (EI0013)"),
    "wordless": ("pod-failed", "exit code 3"),
    "late": ("deadline", "the job ran longer than its --deadline allows"),
    "stopped": ("suspended", "the job is suspended"),
}


def test_each_cause_of_a_real_cluster_is_named_first(terminal: Terminal, volcano: Volcano) -> None:
    jobs = Jobs(terminal)
    with parts(terminal):
        create_first_round(jobs)
        jobs.expect(FIRST_ROUND)
        assert json.loads(terminal.run("explain", "holder", "--json").stdout)["causes"] == [], "it runs"
        shown = terminal.run("explain", "busy")
        assert shown.returncode == 0, shown.stderr
        lines = shown.stdout.splitlines()
        assert [line.split()[0] for line in lines if not line.startswith(" ")] == ["job", "why", "evidence", "next"]
        document = json.loads(terminal.run("explain", "hccl", "--json").stdout)
        assert (document["kind"], document["phase"]) == ("Explanation", "Failed")
        assert [cause["rule"] for cause in document["causes"]][:1] == ["device-error"]
        create_queues(terminal)
        create_second_round(jobs)
        with changed_nodes(terminal):
            jobs.expect(SECOND_ROUND)
        jobs.create("ill", npus=8)
        with unhealthy_chips(terminal):
            jobs.expect({"ill": ("unhealthy-npu", f"node1 has only 7 of 8 {RESOURCE} healthy")})
        volcano.stop(SCHEDULER)
        try:
            jobs.create("unattended", npus=1, backend="volcano")
            jobs.expect({"unattended": ("controller", "Volcano's scheduler has not looked at it")})
        finally:
            volcano.start(SCHEDULER)


def create_queues(terminal: Terminal) -> None:
    """Create two queues of Volcano: one that is too small, and one that will be closed."""
    for name, capability in (("pnas-tiny", {"capability": {RESOURCE: "4"}}), ("pnas-closing", {})):
        body = {"apiVersion": "scheduling.volcano.sh/v1beta1", "kind": "Queue", "metadata": {"name": name}}
        terminal.cluster.create({**body, "spec": {"weight": 1, **capability}})
    until(lambda: all(state == "Open" for state in _queue_states(terminal)))


def _queue_states(terminal: Terminal) -> list[str]:
    queues = terminal.cluster.get("queues.scheduling.volcano.sh")["items"]
    return [(queue.get("status") or {}).get("state", "") for queue in queues]


def create_second_round(jobs: Jobs) -> None:
    """Create the jobs of Volcano and of changed nodes."""
    jobs.create("tiny", npus=8, backend="volcano", job={"queue": "pnas-tiny"})
    jobs.create("closed", npus=8, backend="volcano", job={"queue": "pnas-closing"})
    jobs.create("gang", npus=1, backend="volcano", pod=alone("gang"), nodes=3)
    jobs.create("reported", npus=8, backend="volcano")
    jobs.create("tabled", npus=1, backend="volcano", script=THE_TRAINER)
    jobs.expect({"tabled": ("rank-table", "MindCluster's controller does not write it")})
    jobs.create("tainted", npus=8, node=1)
    jobs.create("cordoned", npus=8, node=2)


@contextmanager
def changed_nodes(terminal: Terminal) -> Iterator[None]:
    """Taint the first node, cordon the second one, close a queue, and let MindCluster report a job."""
    kubectl, place = terminal.cluster.kubectl, ("--namespace", terminal.namespace)
    uid = terminal.cluster.get("jobs.batch.volcano.sh", "reported", *place)["metadata"]["uid"]
    message = "NPUResourceShortage: task requires 8 NPU cards but node idle is 4"
    report = {"jobName": "reported", "conditions": {"reason": "NodePredicateFailed", "message": message}}
    metadata = {"name": "scheduling-exception-report", "namespace": "cluster-system"}
    data = {f"reported.{uid}": json.dumps(report)}
    terminal.cluster.create(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "cluster-system"}},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data},
    )
    terminal.cluster.create(closing(terminal, "pnas-closing"))
    kubectl("taint", "node", "node1", "npu=busy:NoSchedule")
    kubectl("cordon", "node2")
    try:
        yield
    finally:
        kubectl("taint", "node", "node1", "npu-")
        kubectl("uncordon", "node2")
        kubectl("delete", "namespace", "cluster-system", "--wait=false")


SECOND_ROUND = {
    "tainted": ("taint", "node1 is tainted npu=busy:NoSchedule, and takes no pod of the job"),
    "cordoned": ("cordoned", "node2 is cordoned"),
    "tiny": ("queue", "the queue's capability is 4"),
    "closed": ("queue", " and takes no jobs"),
    "gang": ("gang-too-large", "the job needs room for 3 pods"),
    "reported": ("mindcluster", "MindCluster's scheduler finds too few free NPUs"),
}
