"""`doctor` and `submit` say before a start why a job would wait: each cause in a cluster's objects, by one table."""

import copy
import json
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast

import pytest

from launcher.cluster.jobs import ClusterJobs
from launcher.cluster.preflight import judge
from launcher.cluster.submitter import ClusterSubmitter
from launcher.errors import ApiError, LauncherError, PreflightError, RequestError
from launcher.jobs import PreflightFinding
from launcher.kinds import kind_named
from launcher.kinds.batch import BATCH_JOBS
from launcher.kinds.volcano import POD_GROUPS, QUEUES, VOLCANO_JOBS
from launcher.kube.api import Api, Json
from launcher.kube.resources import (
    ACCESS_REVIEWS,
    CLAIMS,
    CONFIG_MAPS,
    NODES,
    PODS,
    QUOTAS,
    SECRETS,
    SERVICES,
    Resource,
)
from launcher.manifests.pod_spec import make_pod_spec
from launcher.manifests.render import render_manifests
from launcher.settings.layers import resolve_settings

NPU = "huawei.com/Ascend910"
Objects = dict[Resource, list[Json]]


def node(name: str, npus: int = 8, healthy: int | None = None, **more: Any) -> Json:
    """Return a node as a kubelet reports it."""
    sizes = {"cpu": "192", "memory": "768Gi", "pods": "110"}
    capacity = {**sizes, NPU: str(npus)} if npus else sizes
    allocatable = {**sizes, NPU: str(npus if healthy is None else healthy)} if npus else sizes
    ready = {"type": "Ready", "status": more.pop("ready", "True")}
    images = [{"names": [image]} for image in more.pop("images", ["r/pnas:1"])]
    status = {"capacity": capacity, "allocatable": allocatable, "conditions": [ready], "images": images}
    return {"metadata": {"name": name, "labels": more.pop("labels", {})}, "spec": more, "status": status}


def claim(name: str, phase: str = "Bound", mode: str = "ReadWriteMany") -> Json:
    """Return a claim."""
    return {"metadata": {"name": name, "uid": name}, "spec": {}, "status": {"phase": phase, "accessModes": [mode]}}


def named(name: str, **parts: Any) -> Json:
    """Return an object with a name."""
    return {"metadata": {"name": name}, **parts}


def quota(hard: Mapping[str, str], used: Mapping[str, str] | None = None) -> Json:
    """Return a quota as its controller reports it."""
    return named("team", spec={"hard": hard}, status={"hard": hard, "used": used or {}})


def ago(seconds: float) -> str:
    """Return the time of an object that is this old."""
    return datetime.fromtimestamp(time.time() - seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def waiting_pod(scheduler: str, age_s: float = 60) -> Json:
    """Return a pod that no scheduler has looked at."""
    meta = {"name": "other-0", "uid": "p", "creationTimestamp": ago(age_s)}
    return {"metadata": meta, "spec": {"schedulerName": scheduler}, "status": {"phase": "Pending"}}


def placed_pod(scheduler: str, age_s: float) -> Json:
    """Return a pod that a scheduler gave its node some time ago."""
    condition = {"type": "PodScheduled", "status": "True", "lastTransitionTime": ago(age_s)}
    spec = {"schedulerName": scheduler, "nodeName": "a"}
    return {"metadata": {"name": "other-1"}, "spec": spec, "status": {"phase": "Running", "conditions": [condition]}}


def unattended_job(*, group: bool) -> Objects:
    """Return a Volcano Job that Volcano's scheduler, or its controller too, has not looked at."""
    meta = {"name": "earlier", "uid": "j", "creationTimestamp": ago(60)}
    job = {"apiVersion": "batch.volcano.sh/v1alpha1", "kind": "Job", "metadata": meta, "spec": {}}
    groups = [{"metadata": {**meta, "name": "earlier-j"}, "status": {}}] if group else []
    return {VOLCANO_JOBS: [job], POD_GROUPS: groups}


class Cluster:
    """An API server with these objects.

    Attributes:
        refused: the answers to creations in a dry run.
        hidden: the resources that the user has no right to read or to try.
    """

    namespace, origin = "training", "here"

    def __init__(self, objects: Objects, refused: Mapping[Resource, ApiError], hidden: frozenset[Resource]) -> None:
        healthy: Objects = {
            NODES: [node("a"), node("b")],
            CLAIMS: [claim("pnas-data"), claim("pnas-output")],
            QUEUES: [named("default", spec={}, status={"state": "Open"})],
            PODS: [placed_pod("volcano", 60), placed_pod("default-scheduler", 60)],
        }
        self.objects = {**healthy, **objects}
        self.refused, self.hidden = refused, hidden

    def request(self, _method: str, path: str, *, action: str) -> Json:
        assert action
        error = self.refused.get(VOLCANO_JOBS)
        if path.startswith(f"/apis/{VOLCANO_JOBS.group}") and "page not found" in str(error):
            raise cast("ApiError", error)
        return {}

    def create(self, resource: Resource, body: Json, *, dry_run: bool = False, warnings: object = None) -> Json:
        if resource == ACCESS_REVIEWS:
            asked = body["spec"]["resourceAttributes"]["resource"]
            return {"status": {"allowed": asked not in {item.plural for item in self.hidden}}}
        assert dry_run, "doctor creates nothing"
        self._check_right(resource)
        if resource in self.refused:
            raise self.refused[resource]
        return copy.deepcopy(body)

    def find(self, resource: Resource, name: str) -> Json | None:
        self._check_right(resource)
        return next((item for item in self.objects.get(resource, []) if item["metadata"]["name"] == name), None)

    def list(self, resource: Resource, *, labels: str = "", fields: str = "") -> tuple[list[Json], str]:
        self._check_right(resource)
        pairs = [pair.split("=") for pair in labels.split(",") if "app.kubernetes.io" not in pair and pair]
        items = [
            item
            for item in self.objects.get(
                resource._replace(namespaced=resource != NODES), self.objects.get(resource, [])
            )
            if all(item["metadata"].get("labels", {}).get(key) == value for key, value in pairs)
            and fields.partition("=")[2] in ("", item["spec"].get("schedulerName"))
        ]
        return items, "1"

    def _check_right(self, resource: Resource) -> None:
        if resource._replace(namespaced=resource not in (NODES, QUEUES)) in self.hidden:
            raise ApiError(f"you have no right to read {resource}", status=403, of_rights=True)


def refusal(text: str, status: int = 403) -> ApiError:
    """Return the server's answer to an object that it does not accept."""
    return ApiError(f"create x in namespace training: {text}", status=status)


OVER_QUOTA = (
    'pods "w-check" is forbidden: exceeded quota: team, requested: requests.huawei.com/Ascend910=8, '
    "used: requests.huawei.com/Ascend910={used}, limited: requests.huawei.com/Ascend910={limit}"
)
SECURITY = 'pods "w-check" is forbidden: violates PodSecurity "restricted:latest": host namespaces (hostNetwork=true)'
BUSY = {"key": "npu", "value": "busy", "effect": "NoSchedule"}
SMALL_QUEUE = named("default", spec={"capability": {NPU: "4"}}, status={"state": "Open"})


class Case:
    """A cause, and what the user reads of it.

    Attributes:
        flags: the settings of the job, in addition to an image and eight NPUs.
        about: the thing that the finding names.
        state: `missing` if submit refuses the job, `later` if submit accepts and warns, `unknown` if it cannot be seen.
    """

    def __init__(
        self,
        about: str,
        state: str,
        text: str,
        objects: Objects | None = None,
        *,
        refused: Mapping[Resource, ApiError] | None = None,
        hidden: tuple[Resource, ...] = (),
        overlay: Json | None = None,
        **flags: Any,
    ) -> None:
        self.about, self.state, self.text, self.overlay, self.flags = about, state, text, overlay, flags
        self.cluster = Cluster(objects or {}, refused or {}, frozenset(hidden))

    def findings(self, folder: Path) -> list[PreflightFinding]:
        """Return what doctor says."""
        settings = resolve_settings(self._flags(folder), None, {})
        return list(ClusterSubmitter(self._jobs()).examine(settings))

    def submit(self, folder: Path) -> list[str]:
        """Return submit's warnings."""
        spec = make_pod_spec(resolve_settings(self._flags(folder), None, {}), self._jobs().kind)
        return judge(self._jobs(), spec, render_manifests(spec, self._jobs().kind))

    def _jobs(self) -> ClusterJobs:
        return ClusterJobs(kind_named(self.flags.get("backend", "volcano")), cast("Api", self.cluster))

    def _flags(self, folder: Path) -> dict[str, Any]:
        flags = {"image": "r/pnas:1", "npus": 8, "name": "w", **self.flags}
        if self.overlay is not None:
            flags["overlay"] = folder / "overlay.yaml"
            flags["overlay"].write_text(json.dumps({"spec": self.overlay}))
        return flags


TERMS = {"nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]}
NOBODY = {"schedulerName": "nobody"}
CAUSES = {
    "claim missing": Case("claim none", "missing", "there is no such claim in namespace training", data_claim="none"),
    "claim unbound": Case(
        "claim pnas-data", "missing", "it is not bound", {CLAIMS: [claim("pnas-data", "Pending"), claim("pnas-output")]}
    ),
    "claim of one node": Case(
        "claim pnas-output",
        "missing",
        "the claim has only ReadWriteOnce",
        {CLAIMS: [claim("pnas-data"), claim("pnas-output", mode="ReadWriteOnce")]},
        nodes=2,
    ),
    "no Volcano": Case(
        "job", "missing", "is Volcano installed?", refused={VOLCANO_JOBS: refusal("404 page not found", 404)}
    ),
    "namespace absent": Case(
        "namespace",
        "missing",
        "namespace training: there is no such namespace in here",
        refused={VOLCANO_JOBS: refusal('namespaces "training" not found', 404)},
    ),
    "namespace being deleted": Case(
        "namespace",
        "missing",
        "namespace training is being deleted",
        refused={BATCH_JOBS: refusal("because it is being terminated")},
        backend="batch",
    ),
    "quota of jobs": Case(
        "job",
        "missing",
        "no room for the job: ",
        refused={BATCH_JOBS: refusal('jobs.batch "w-check" is forbidden: exceeded quota: team, requested: pods=1')},
        backend="batch",
    ),
    "quota of NPUs too small": Case(
        "quota",
        "missing",
        "exceeded quota: team, requested: requests.huawei.com/Ascend910=8",
        refused={PODS: refusal(OVER_QUOTA.format(used=0, limit=4))},
    ),
    "quota of NPUs in use": Case(
        "quota",
        "later",
        "a job waits until others end",
        refused={PODS: refusal(OVER_QUOTA.format(used=8, limit=8))},
    ),
    "quota for one of two pods": Case(
        "quota",
        "missing",
        "quota team: the job's pods ask for 16 requests.huawei.com/Ascend910, and the namespace has 8 in all",
        {QUOTAS: [quota({f"requests.{NPU}": "8"})]},
        nodes=2,
    ),
    "quota for two pods in use": Case(
        "quota",
        "later",
        "ask for 2 pods, and 1 of 2 are in use",
        {QUOTAS: [quota({"pods": "2"}, {"pods": "1"})]},
        nodes=2,
    ),
    "quota of cpu": Case(
        "quota",
        "missing",
        "give --cpu and --memory",
        refused={PODS: refusal("failed quota: team: must specify cpu for: trainer")},
    ),
    "Pod Security": Case(
        "pod security",
        "missing",
        'violates PodSecurity "restricted:latest"',
        refused={PODS: refusal(SECURITY)},
        overlay={"hostNetwork": True},
    ),
    "LimitRange": Case(
        "limit range",
        "missing",
        "ask the administrator to change the LimitRange",
        refused={PODS: refusal("maximum cpu usage per Container is 2, but limit is 96")},
        cpu="96",
    ),
    "service account missing": Case(
        "service account",
        "missing",
        "take it out of the --overlay",
        refused={PODS: refusal('error looking up service account training/none: serviceaccount "none" not found')},
        overlay={"serviceAccountName": "none"},
    ),
    "priority class missing": Case(
        "priority class",
        "missing",
        "choose another --priority-class",
        refused={PODS: refusal("no PriorityClass with name none was found")},
        priority_class="none",
    ),
    "a webhook refuses pods": Case(
        "pods", "later", "denied: no", refused={PODS: refusal('admission webhook "policy" denied: no')}
    ),
    "Volcano's webhook away": Case(
        "job",
        "missing",
        "a webhook of the cluster does not answer: ",
        refused={VOLCANO_JOBS: refusal('failed calling webhook "mutatejob.volcano.sh": no endpoints available', 500)},
    ),
    "a webhook of pods away": Case(
        "pods", "later", "a job waits until", refused={PODS: refusal('failed calling webhook "x": timeout', 500)}
    ),
    "node selector": Case("NPUs", "later", f"no node with zone=nowhere has {NPU} now", node_selector=["zone=nowhere"]),
    "no NPUs": Case("NPUs", "later", f"no node has {NPU} now", {NODES: [node("a", 0)]}),
    "no nodes": Case("NPUs", "later", f"no node has {NPU} now", {NODES: []}),
    "too many NPUs": Case(
        "NPUs",
        "missing",
        f"--npus 8: no node has more than 4 {NPU}; ask for 4 or fewer, on more --nodes",
        {NODES: [node("a", 4), node("b", 4)]},
    ),
    "too much memory": Case("NPUs", "missing", "--memory 900Gi: no node has more than 768Gi memory", memory="900Gi"),
    "taint": Case(
        "NPUs",
        "later",
        "0 of 2 can take a pod now: a, b tainted npu=busy:NoSchedule (choose other nodes, or tolerate it with "
        "--toleration npu=busy:NoSchedule)",
        {NODES: [node("a", taints=[BUSY]), node("b", taints=[BUSY])]},
    ),
    "taint that another toleration meets": Case(
        "NPUs",
        "later",
        "tainted npu=busy:NoSchedule",
        {NODES: [node("a", taints=[BUSY])]},
        toleration=["npu=busy:NoExecute", "gpu"],
    ),
    "taint that also evicts": Case(
        "NPUs", "later", "tainted npu=busy:NoExecute", {NODES: [node("a", taints=[{**BUSY, "effect": "NoExecute"}])]}
    ),
    "cordoned": Case("NPUs", "later", "a cordoned (wait, or ask", {NODES: [node("a", unschedulable=True)]}),
    "node not ready": Case("NPUs", "later", "a not ready (wait", {NODES: [node("a", ready="Unknown")]}),
    "unhealthy NPUs": Case(
        "NPUs",
        "later",
        f"a only 7 of 8 {NPU} healthy (ask for fewer, or ask the administrator to look at them (`npu-smi info`)); "
        f"b only 6 of 8 {NPU} healthy",
        {NODES: [node("a", healthy=7), node("b", healthy=6)]},
    ),
    "a gang larger than the cluster": Case(
        "NPUs",
        "later",
        f"the job needs 3 nodes with 8 {NPU} and 0.8 cpu and 2Gi memory, and 2 of 2 can take a pod now: the cluster "
        "has no more: ask for --nodes 2",
        nodes=3,
    ),
    "a gang of which one node is cordoned": Case(
        "NPUs",
        "later",
        "1 of 2 can take a pod now: b cordoned",
        {NODES: [node("a"), node("b", unschedulable=True)]},
        nodes=2,
    ),
    "enough NPUs in all, on no single node": Case(
        "NPUs", "missing", "ask for 2 or fewer", {NODES: [node(name, 2) for name in "abcd"]}
    ),
    "image that no node has": Case(
        "image", "later", "--image-pull-policy Never pulls no image", image="r/none:1", image_pull_policy="Never"
    ),
    "image to pull": Case("image", "unknown", "not checked: whether a node can pull r/none:1", image="r/none:1"),
    "image for another processor, or without the trainer": Case(
        "image", "unknown", "not checked: whether r/pnas:1 starts: its processor and its program; a, b have it"
    ),
    "rank table never completed": Case(
        "rank table", "unknown", "not checked: whether MindCluster's controller writes it"
    ),
    "image pull secret missing": Case(
        "secret none", "later", "namespace training has no such secret", image_pull_secret=["none"]
    ),
    "secret of variables hidden": Case(
        "secret keys", "unknown", "not checked: ", hidden=(SECRETS,), env_from_secret=["keys"]
    ),
    "configmap missing": Case(
        "configmap none",
        "later",
        "namespace training has no such configmap",
        overlay={"volumes": [{"name": "x", "configMap": {"name": "none"}}]},
    ),
    "pod without a scheduler": Case("scheduler", "later", "no sign of a scheduler named nobody", overlay=NOBODY),
    "pod that no scheduler looks at": Case(
        "scheduler",
        "later",
        "pod other-0 waits: no scheduler named nobody has looked at it",
        {PODS: [waiting_pod("nobody")]},
        overlay=NOBODY,
    ),
    "no kube-scheduler": Case(
        "scheduler",
        "later",
        "no scheduler named default-scheduler",
        {PODS: [waiting_pod("default-scheduler")]},
        backend="batch",
    ),
    "scheduler without traces": Case(
        "scheduler", "unknown", "not checked: whether volcano runs now; no pod that you", {PODS: []}
    ),
    "scheduler that worked lately": Case("scheduler", "unknown", "it has given a pod its node in the last hour"),
    "scheduler of an overlay that worked lately": Case(
        "scheduler", "unknown", "whether nobody runs now", {PODS: [placed_pod("nobody", 60)]}, overlay=NOBODY
    ),
    "Volcano's scheduler away": Case(
        "scheduler", "later", "Volcano's scheduler has not looked", unattended_job(group=True)
    ),
    "Volcano's controller away": Case(
        "scheduler", "later", "Volcano's controller has not", unattended_job(group=False)
    ),
    "queue missing": Case("queue none", "missing", "--queue none: there is no such queue in here", queue="none"),
    "queue closed": Case(
        "queue default",
        "missing",
        "it is Closed and takes no jobs",
        {QUEUES: [named("default", status={"state": "Closed"})]},
    ),
    "queue too small": Case(
        "queue default",
        "later",
        f"the job asks for 8 {NPU}, and the queue's capability is 4: it would wait for ever",
        {QUEUES: [SMALL_QUEUE]},
    ),
    "queue too small for the gang": Case(
        "queue default",
        "later",
        f"the job asks for 16 {NPU}",
        {QUEUES: [named("default", spec={"capability": {NPU: "12"}})]},
        nodes=2,
    ),
    "queue hidden": Case("queue default", "unknown", "not checked: ", hidden=(QUEUES,)),
    "nodes hidden": Case("NPUs", "unknown", "not checked: ", hidden=(NODES,)),
    "claims hidden": Case("claim pnas-data", "unknown", "not checked: ", hidden=(CLAIMS,)),
    "no right to try a pod": Case("pods", "unknown", "not checked: ", hidden=(PODS,)),
    "quotas hidden": Case("quota", "unknown", "not checked: ", hidden=(QUOTAS,), nodes=2),
    "a webhook that cannot be tried": Case(
        "pods",
        "unknown",
        "not checked: ",
        refused={PODS: refusal('admission webhook "x" does not support dry run', 400)},
    ),
    "node affinity of an overlay": Case(
        "NPUs",
        "unknown",
        "not checked: the node affinity of the overlay",
        overlay={"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": TERMS}}},
    ),
    "data in the claim": Case("data", "unknown", "not checked: whether /data on claim pnas-data has the images"),
}


@pytest.mark.parametrize("case", CAUSES.values(), ids=CAUSES)
def test_doctor_is_never_ok_with_what_keeps_a_job_from_running(case: Case, tmp_path: Path) -> None:
    findings = {finding.about: finding for finding in case.findings(tmp_path)}
    finding = findings[case.about]
    assert finding.state == case.state, finding.text
    assert case.text in finding.text
    assert "\n" not in finding.text
    others = [item.about for item in findings.values() if item.state not in ("ok", "unknown") and item is not finding]
    assert [about for about in others if about not in ("rights", case.about)] == [], "one cause, one finding"


OF_SUBMIT = {name: case for name, case in CAUSES.items() if case.state != "unknown" and case.about != "image"}


@pytest.mark.parametrize("case", OF_SUBMIT.values(), ids=OF_SUBMIT)
def test_submit_refuses_what_never_starts_and_warns_of_what_waits(case: Case, tmp_path: Path) -> None:
    """What only shows in other jobs, submit learns from its own job."""
    if case.state == "missing":
        with pytest.raises(PreflightError) as error:
            case.submit(tmp_path)
        assert case.text in str(error.value)
    elif case.overlay == NOBODY or case.about != "scheduler":
        assert any(case.text in warning for warning in case.submit(tmp_path))
    else:
        assert case.submit(tmp_path) == []


@pytest.mark.parametrize(
    ("objects", "flags"),
    [
        ({}, {}),
        ({}, {"nodes": 2}),
        ({}, {"backend": "batch", "device": "cpu", "cpu": "4"}),
        ({NODES: [node("a", taints=[BUSY])]}, {"toleration": ["npu=busy"]}),
        ({NODES: [node("a", taints=[BUSY])]}, {"toleration": ["npu:NoSchedule"]}),
        ({NODES: [node("a", taints=[{**BUSY, "effect": "PreferNoSchedule"}])]}, {}),
        ({NODES: [node("a", labels={"zone": "a"}), node("b", unschedulable=True)]}, {"node_selector": ["zone=a"]}),
        ({NODES: [node("a", healthy=7)]}, {"npus": 4}),
        ({QUOTAS: [quota({f"requests.{NPU}": "16", "pods": "2"})]}, {"nodes": 2}),
        ({QUOTAS: [{**quota({"pods": "0"}), "spec": {"scopes": ["BestEffort"]}}]}, {"nodes": 2}),
        ({QUEUES: [named("default", spec={"capability": {NPU: "8", "cpu": "1"}})]}, {}),
        ({SECRETS: [named("keys")]}, {"env_from_secret": ["keys"]}),
    ],
)
def test_doctor_is_content_with_a_cluster_that_runs_the_job(objects: Objects, flags: Any, tmp_path: Path) -> None:
    case = Case("", "ok", "", objects, **flags)
    findings = case.findings(tmp_path)
    assert [finding for finding in findings if finding.state not in ("ok", "unknown")] == []
    assert {finding.about for finding in findings if finding.state == "unknown"} - {"rank table"} == {
        "data",
        "image",
        "scheduler",
    }
    assert case.submit(tmp_path) == []


@pytest.mark.parametrize(
    "overlay",
    [
        "text",
        {"containers": "x"},
        {"containers": [{"name": "trainer", "resources": {"limits": {"cpu": "much"}}}]},
        {"containers": [{"name": "trainer", "resources": ["x"], "env": "x", "envFrom": 3}]},
        {"initContainers": [None], "nodeSelector": ["a"], "tolerations": "x"},
        {"volumes": [None], "imagePullSecrets": ["a"], "affinity": "x", "schedulerName": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("backend", ["batch", "volcano"])
def test_an_overlay_of_any_form_is_judged_by_the_server_only(overlay: Any, backend: str, tmp_path: Path) -> None:
    invalid = refusal("cannot unmarshal", 400)
    case = Case("", "", "", refused={VOLCANO_JOBS: invalid, BATCH_JOBS: invalid}, overlay=overlay, backend=backend)
    findings = {finding.about: finding for finding in case.findings(tmp_path)}
    assert (findings["job"].state, findings["overlay"].state) == ("missing", "unknown")
    assert findings["NPUs"].state == "ok", "everything else is checked without the overlay"
    with pytest.raises(RequestError, match="the cluster refuses the job: "):
        case.submit(tmp_path)
    no_rights = Case("", "", "", hidden=(VOLCANO_JOBS, BATCH_JOBS, PODS), overlay=overlay, backend=backend)
    assert {finding.state for finding in no_rights.findings(tmp_path)} == {"ok", "missing", "unknown"}


def test_a_missing_image_does_not_hide_the_other_causes(tmp_path: Path) -> None:
    case = Case("image", "missing", "", {QUEUES: [SMALL_QUEUE]}, image=None)
    states = {finding.about: finding.state for finding in case.findings(tmp_path)}
    assert (states["image"], states["queue default"], states["pods"]) == ("missing", "later", "ok")


def test_a_user_without_rights_gets_no_ok_for_a_hidden_fact(tmp_path: Path) -> None:
    hidden = (PODS, NODES, CLAIMS, QUEUES, QUOTAS, SECRETS, CONFIG_MAPS, SERVICES, VOLCANO_JOBS, BATCH_JOBS, POD_GROUPS)
    case = Case("", "", "", hidden=hidden, env_from_secret=["keys"])
    findings = {finding.about: finding for finding in case.findings(tmp_path)}
    assert {about for about, finding in findings.items() if finding.state == "ok"} == {"cluster"}
    assert findings["rights"].state == "missing"
    unknown = [finding for finding in findings.values() if finding.state == "unknown"]
    assert all(finding.text.startswith("not checked: ") for finding in unknown)


def test_a_server_that_fails_is_no_finding(tmp_path: Path) -> None:
    case = Case("", "", "", refused={PODS: refusal("etcd is full", 500)})
    with pytest.raises(LauncherError, match="etcd is full"):
        case.findings(tmp_path)
