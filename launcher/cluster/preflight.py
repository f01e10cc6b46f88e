"""The cluster's judgement of a job before anything exists, and whether the namespace has what user and job need.

`judge` has the server try each object (dry run). `check_rights` and `check_cluster` ask for rights, for claims that can
be shared, and for nodes with enough NPUs; `check_claim` and `check_nodes` are pure. What is only on its way is no
fault: a claim that waits for its first pod, or nodes that an autoscaler adds on demand.
"""

from collections.abc import Sequence

from launcher.cluster.events import events_about
from launcher.cluster.jobs import ClusterJobs
from launcher.cluster.rbac import Verbs, cluster_rights, namespace_rights
from launcher.errors import ApiError, LauncherError, PreflightError, RequestError
from launcher.jobs import KIND_NAMES, PreflightFinding
from launcher.kinds import Kind
from launcher.kube.api import TAKEN, Api, Json, if_allowed
from launcher.kube.resources import ACCESS_REVIEWS, CLAIMS, CONFIG_MAPS, NODES, SERVICES, Resource
from launcher.settings.options import ClusterOptions
from launcher.settings.spec import JobSpec
from trainer.shared.config import TrainConfig

PART_RESOURCES = {"ConfigMap": CONFIG_MAPS, "Service": SERVICES}
"""The kinds of object that a job needs in addition to its pods."""
_TRIAL_SUFFIX = "-check"
_ANY_MODE = frozenset({"ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod", "ReadOnlyMany"})
# The access modes of which a claim needs one, for pods on one node and on several.
ONE_NODE = {"data_claim": _ANY_MODE, "output_claim": _ANY_MODE - {"ReadOnlyMany"}}
SEVERAL_NODES = {
    "data_claim": frozenset({"ReadWriteMany", "ReadOnlyMany"}),
    "output_claim": frozenset({"ReadWriteMany"}),
}
_CONSUMER = "volume.kubernetes.io/selected-node"
_WAITS_FOR_A_POD = frozenset({"WaitForFirstConsumer", "WaitForPodScheduled"})


def judge(jobs: ClusterJobs, spec: JobSpec, objects: Sequence[Json]) -> list[str]:
    """Have the server judge the job and its parts without creating them; return its warnings.

    Raises:
        PreflightError: the namespace, the kind of job or the queue is missing or closed; a claim cannot be used, or no
            node is large enough.
        RequestError: the job is not valid; the message names every cause.
    """
    api, kind = jobs.api, jobs.kind
    warnings: list[str] = []
    if not jobs.served():
        # Every cluster serves the last kind.
        hint = f"is {kind.title} installed? Without it, use --backend {KIND_NAMES[-1]}"
        raise PreflightError(f"{api.origin}: serves no {kind.resource}: {hint}")
    kind.check(api, spec.pods)
    for item in reversed(objects):
        # The attempt that this one replaces may still have the names.
        name = item["metadata"]["name"]
        trial = {**item, "metadata": {**item["metadata"], "name": f"{name}{_TRIAL_SUFFIX}"}}
        try:
            api.create(PART_RESOURCES.get(item["kind"], kind.resource), trial, dry_run=True, warnings=warnings)
        except ApiError as error:
            # The server looks last at whether the name is taken: it accepts the object itself.
            if error.status != TAKEN:
                raise translate_refusal(error, api, trial_of=name) from error
    for finding in check_cluster(api, spec.pods, spec.train):
        if finding.state == "missing":
            raise PreflightError(finding.text)
        if finding.state == "later":
            warnings.append(finding.text)
    return warnings


def translate_refusal(error: ApiError, api: Api, *, trial_of: str = "") -> LauncherError:
    """Return what the refusal of an object means: a fault of the job, or of the cluster."""
    text = str(error)
    text = text.replace(f"{trial_of}{_TRIAL_SUFFIX}", trial_of) if trial_of else text
    if error.status == 404 and "namespaces" in text:
        return PreflightError(
            f"namespace {api.namespace}: there is no such namespace in {api.origin}; choose --namespace"
        )
    if error.status == 403 and "being terminated" in text:
        return PreflightError(
            f"namespace {api.namespace} is being deleted: wait until it is gone, or choose --namespace"
        )
    if error.status == 403 and "exceeded quota" in text:
        return PreflightError(f"no room for the job: {text}; make room, or ask for a larger quota")
    if error.of_rights or error.status not in (400, 403, 422):
        return error
    return RequestError(f"the cluster refuses the job: {text}")


def check_rights(api: Api, kind: Kind) -> PreflightFinding:
    """Check the rights of a Role, which a launcher needs, and the rights of a ClusterRole, which are optional."""
    needed = namespace_rights([kind])
    if missing := _missing_rights(api, needed):
        advice = "have the Role of `helm install pnas charts/pnas` bound to you, or of k8s/manifests/rbac.yaml"
        text = f"you have no right to {', '.join(missing)} in namespace {api.namespace}: {advice}"
        return PreflightFinding("rights", "missing", text)
    optional = _missing_rights(api, cluster_rights([kind]))
    note = f"; without, which is seldom missed: {', '.join(optional)}" if optional else ""
    return PreflightFinding("rights", "ok", f"all {sum(map(len, needed.values()))} in namespace {api.namespace}{note}")


def check_cluster(api: Api, pods: ClusterOptions, train: TrainConfig) -> list[PreflightFinding]:
    """Check both claims and the nodes. Without read rights, report nothing missing and let the cluster decide.

    Raises:
        LauncherError: the cluster does not answer.
    """
    claims = {"data_claim": pods.data_claim, "output_claim": pods.output_claim}
    findings = [_find_claim(api, setting, name, train.nodes) for setting, name in claims.items()]
    if train.device == "cpu":
        return [*findings, PreflightFinding("NPUs", "ok", "the job asks for none")]
    nodes, hidden = if_allowed(lambda: api.list(NODES, labels=",".join(pods.node_selector))[0])
    if nodes is None:
        return [*findings, PreflightFinding("NPUs", "unknown", f"hidden from you: {hidden}")]
    return [*findings, check_nodes(nodes, pods.resource, train.npus or 1, pods.node_selector)]


def check_claim(
    setting: str, name: str, claim: Json | None, events: Sequence[Json], *, namespace: str, nodes: int
) -> PreflightFinding:
    """Check whether the pods of a job can use a claim.

    Args:
        setting: the setting that names it: `data_claim`, `output_claim`.
        claim: None if there is no such claim.
        events: of a claim that is not bound, oldest first.
        nodes: how many nodes the job has.
    """
    about, flag = f"claim {name}", f"--{setting.replace('_', '-')} {name}"
    if claim is None:
        remedy = "`helm install pnas charts/pnas` or k8s/manifests/claims.yaml makes one"
        return PreflightFinding(about, "missing", f"{flag}: there is no such claim in namespace {namespace}; {remedy}")
    if fault := _claim_fault(claim, events):
        remedy = f"see `kubectl describe pvc {name} --namespace {namespace}`"
        return PreflightFinding(about, "missing", f"{flag}: {fault}; {remedy}")
    status = claim.get("status") or {}
    modes = status.get("accessModes") or claim["spec"].get("accessModes", [])
    suitable = (SEVERAL_NODES if nodes > 1 else ONE_NODE)[setting]
    if not suitable & set(modes):
        needs = f"has only {', '.join(modes)}, and needs {' or '.join(sorted(suitable))}"
        why = f"as the pods of --nodes {nodes} share it" if nodes > 1 else "as runs write there"
        return PreflightFinding(about, "missing", f"{flag}: the claim {needs}, {why}; choose another claim")
    return PreflightFinding(about, "ok", f"{status.get('phase', 'Pending')}, {', '.join(modes)}")


def check_nodes(nodes: Sequence[Json], resource: str, npus: int, labels: Sequence[str]) -> PreflightFinding:
    """Check whether a node has enough NPUs. Occupied and unhealthy NPUs count: they come back.

    Args:
        nodes: the nodes that have the `labels`, which are KEY=VALUE.
        npus: how many NPUs each pod asks for.
    """
    counts = [int((node.get("status") or {}).get("capacity", {}).get(resource, 0)) for node in nodes]
    most, no_node = max(counts, default=0), f"no node{' with ' + ', '.join(labels) if labels else ''} has"
    if most == 0:
        return PreflightFinding("NPUs", "later", f"{no_node} {resource} now; a job waits until one comes")
    if most < npus:
        advice = f"ask for {most} or fewer, on more --nodes"
        return PreflightFinding("NPUs", "missing", f"--npus {npus}: {no_node} more than {most} {resource}; {advice}")
    large = sum(count >= npus for count in counts)
    return PreflightFinding("NPUs", "ok", f"{npus} {resource} or more on {large} of {len(nodes)} nodes")


def _missing_rights(api: Api, rights: Verbs) -> list[str]:
    return [
        f"{verb} {resource}"
        for resource, verbs in rights.items()
        for verb in verbs
        if not _has_right(api, verb, resource)
    ]


def _has_right(api: Api, verb: str, resource: Resource) -> bool:
    plural, _, subresource = resource.plural.partition("/")
    attributes = {"verb": verb, "group": resource.group, "resource": plural, "subresource": subresource}
    namespace = {"namespace": api.namespace} if resource.namespaced else {}
    review = {
        "apiVersion": ACCESS_REVIEWS.api_version,
        "kind": "SelfSubjectAccessReview",
        "metadata": {},
        "spec": {"resourceAttributes": {**attributes, **namespace}},
    }
    return bool(api.create(ACCESS_REVIEWS, review)["status"]["allowed"])


def _find_claim(api: Api, setting: str, name: str, nodes: int) -> PreflightFinding:
    claim, hidden = if_allowed(lambda: api.find(CLAIMS, name))
    if hidden:
        return PreflightFinding(f"claim {name}", "unknown", f"hidden from you: {hidden}")
    events = events_about(api, claim)[0] if claim is not None and _is_unbound(claim) else []
    return check_claim(setting, name, claim, events, namespace=api.namespace, nodes=nodes)


def _is_unbound(claim: Json) -> bool:
    return bool((claim.get("status") or {}).get("phase", "Pending") == "Pending")


def _claim_fault(claim: Json, events: Sequence[Json]) -> str:
    """Return what keeps pods from using the claim; empty if nothing does."""
    if "deletionTimestamp" in claim["metadata"]:
        return "it is being deleted"
    if not _is_unbound(claim):
        phase = claim["status"]["phase"]
        return "" if phase == "Bound" else f"it is {phase}"
    event = events[-1] if events else {}
    if event.get("reason") in _WAITS_FOR_A_POD or _CONSUMER in (claim["metadata"].get("annotations") or {}):
        return ""
    message = " ".join(str(event.get("message", "")).split())
    return "it is not bound" + (f" ({message})" if message else " yet")
