"""The checks of a job before anything exists: `submit` and `doctor` ask the same questions.

The server tries each object, and one pod as the job's controller would make it (dry run). `SUBMIT_CHECKS` and
`DOCTOR_CHECKS` then read what else decides whether the pods start; the rules are pure functions in the modules next to
this one. To add a check, write it as a `Check` and enter it in one of the tables. A fact that the user cannot see is
`unknown`, never `ok`.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice

from launcher.cluster.claims import find_claim
from launcher.cluster.jobs import ClusterJobs
from launcher.cluster.nodes import NPUS, check_nodes
from launcher.cluster.quotas import QUOTA, check_quotas
from launcher.cluster.rbac import Verbs, cluster_rights, namespace_rights, preflight_rights
from launcher.cluster.references import check_image, check_named, named_objects
from launcher.cluster.schedulers import SCHEDULER, check_scheduler
from launcher.cluster.trial import check_served, needs_of, trial_finding, try_objects, try_pod
from launcher.errors import PreflightError
from launcher.jobs import NOT_CHECKED, Phase, PreflightFinding
from launcher.kinds import Kind, kueue
from launcher.kinds.labels import OURS, RANK_TABLE
from launcher.kinds.needs import JobNeeds
from launcher.kinds.objects import is_young
from launcher.kube.api import Api, Json, if_allowed
from launcher.kube.resources import (
    ACCESS_REVIEWS,
    CLAIMS,
    CONFIG_MAPS,
    NODES,
    PODS,
    QUOTAS,
    Resource,
)
from launcher.manifests.render import render_manifests
from launcher.settings.spec import JobSpec

_JOBS_ASKED = 3

Check = Callable[[ClusterJobs, JobNeeds], Iterable[PreflightFinding]]


def judge(jobs: ClusterJobs, spec: JobSpec, objects: Sequence[Json]) -> list[str]:
    """Have the server judge the job and its parts without creating them; return warnings.

    Raises:
        PreflightError: the cluster lacks something without which the job cannot start.
        RequestError: the job is not valid; the message names every cause.
    """
    warnings: list[str] = []
    for finding in _questions(jobs, spec, objects, warnings):
        if finding.state == "missing":
            raise PreflightError(finding.text)
        if finding.state == "later":
            warnings.append(finding.text)
    return warnings


def examine_cluster(jobs: ClusterJobs, spec: JobSpec, objects: Sequence[Json]) -> Iterator[PreflightFinding]:
    """Yield all that is ready for the job, all that is missing, and all that cannot be checked.

    Raises:
        LauncherError: the cluster does not answer.
    """
    yield PreflightFinding("cluster", "ok", f"{jobs.place}, for --backend {jobs.name}")
    trial = trial_finding(jobs, objects)
    if trial.about == "namespace":
        yield trial  # nothing else can be asked of it
        return
    yield check_rights(jobs.api, jobs.kind, queued=bool(jobs.kind.queue_label and kueue.queue_of(objects[-1])))
    yield trial
    if spec.overlay and trial.state != "ok":
        # Only the server knows whether an overlay has the form of a pod; everything else can be checked without it.
        yield PreflightFinding("overlay", "unknown", f"{NOT_CHECKED}the server has not accepted the job with it")
        spec = spec.model_copy(update={"overlay": {}})
        objects = render_manifests(spec, jobs.kind)
    pod_trial, needs = try_pod(jobs, needs_of(jobs.kind, spec, objects), objects[-1])
    yield pod_trial
    if jobs.served():
        yield from jobs.kind.check(jobs.api, needs)
    for check in (*SUBMIT_CHECKS, *DOCTOR_CHECKS):
        yield from check(jobs, needs)
    where = f"{spec.train.data_path} on claim {spec.pods.data_claim}"
    yield PreflightFinding("data", "unknown", f"{NOT_CHECKED}whether {where} has the images: only a pod sees it")


def _questions(
    jobs: ClusterJobs, spec: JobSpec, objects: Sequence[Json], warnings: list[str]
) -> Iterator[PreflightFinding]:
    """Yield what submit asks, in the order in which the most direct cause comes first."""
    needs = needs_of(jobs.kind, spec, objects)
    check_served(jobs)
    yield from jobs.kind.check(jobs.api, needs)
    try_objects(jobs, objects, warnings)
    finding, needs = try_pod(jobs, needs, objects[-1])
    yield finding
    for check in SUBMIT_CHECKS:
        yield from check(jobs, needs)


def check_rights(api: Api, kind: Kind, *, queued: bool) -> PreflightFinding:
    """Check the rights of a Role, which a launcher needs, and further rights, which are optional.

    Args:
        queued: whether the job belongs to a queue of Kueue.
    """
    needed = {**namespace_rights([kind]), **(kueue.RIGHTS if queued else {})}
    if missing := _missing_rights(api, needed):
        advice = "have the Role of `helm install pnas charts/pnas` bound to you, or the Roles of k8s/manifests"
        text = f"you have no right to {', '.join(missing)} in namespace {api.namespace}: {advice}"
        return PreflightFinding("rights", "missing", text)
    optional = [*_missing_rights(api, preflight_rights()), *_missing_rights(api, cluster_rights([kind]))]
    note = f"; without, which is seldom missed: {', '.join(optional)}" if optional else ""
    return PreflightFinding("rights", "ok", f"all {sum(map(len, needed.values()))} in namespace {api.namespace}{note}")


def _claims(jobs: ClusterJobs, needs: JobNeeds) -> Iterator[PreflightFinding]:
    options = needs.options
    for setting, name in (("data_claim", options.data_claim), ("output_claim", options.output_claim)):
        yield find_claim(jobs.api, setting, name, needs.count)


def _named(jobs: ClusterJobs, needs: JobNeeds) -> Iterator[PreflightFinding]:
    """Check further objects that pods name, by an option or an overlay; the job's own parts come with it."""
    api, options = jobs.api, needs.options
    for resource, name in named_objects(needs.pod):
        if resource == CLAIMS and name in (options.data_claim, options.output_claim):
            continue
        if resource == CONFIG_MAPS and name.startswith(RANK_TABLE):
            continue
        item, hidden = if_allowed(partial(api.find, resource, name))
        yield check_named(resource, name, item, hidden, api.namespace)


def _quotas(jobs: ClusterJobs, needs: JobNeeds) -> Iterator[PreflightFinding]:
    """Check the quotas for all pods, unless the server has tried the only one."""
    if needs.tried and needs.count == 1:
        return
    quotas, hidden = if_allowed(lambda: jobs.api.list(QUOTAS)[0])
    if quotas is not None:
        yield check_quotas(quotas, needs)
    else:
        yield PreflightFinding(QUOTA, "unknown", f"{NOT_CHECKED}whether there is room for all pods: {hidden}")


def _nodes(jobs: ClusterJobs, needs: JobNeeds) -> Iterator[PreflightFinding]:
    nodes, hidden = _nodes_for(jobs, needs)
    if nodes is None:
        yield PreflightFinding(NPUS, "unknown", f"{NOT_CHECKED}whether a node has them: {hidden}")
    else:
        yield check_nodes(nodes, needs)


def _nodes_for(jobs: ClusterJobs, needs: JobNeeds) -> tuple[list[Json] | None, str]:
    """Return the nodes that the pods select, and why the user cannot see them."""
    labels = ",".join(f"{key}={value}" for key, value in (needs.pod.get("nodeSelector") or {}).items())
    return if_allowed(lambda: jobs.api.list(NODES, labels=labels)[0])


def _image(jobs: ClusterJobs, needs: JobNeeds) -> Iterator[PreflightFinding]:
    nodes, _ = _nodes_for(jobs, needs)
    if needs.options.image is not None:
        yield check_image(needs.options.image, needs.options.image_pull_policy, nodes)


def _rank_table(_jobs: ClusterJobs, needs: JobNeeds) -> Iterator[PreflightFinding]:
    if any(name.startswith(RANK_TABLE) for _, name in named_objects(needs.pod)):
        text = f"{NOT_CHECKED}whether MindCluster's controller writes it; without MindCluster, use --mindcluster off"
        yield PreflightFinding("rank table", "unknown", text)


def _other_scheduler(jobs: ClusterJobs, needs: JobNeeds) -> Iterator[PreflightFinding]:
    """Check a scheduler that an overlay names."""
    if not needs.usual_scheduler:
        yield _scheduler_finding(jobs, needs)


def _usual_scheduler(jobs: ClusterJobs, needs: JobNeeds) -> Iterator[PreflightFinding]:
    """Check the scheduler of the job's kind, by its pods and by jobs that have no pods."""
    if not needs.usual_scheduler:
        return
    finding = _scheduler_finding(jobs, needs)
    yield finding if finding.state == "later" else next(_unattended_jobs(jobs), finding)


def _scheduler_finding(jobs: ClusterJobs, needs: JobNeeds) -> PreflightFinding:
    fields = f"spec.schedulerName={needs.scheduler}"
    everywhere = PODS._replace(namespaced=False)
    pods, _ = if_allowed(lambda: jobs.api.list(everywhere, fields=fields)[0])
    if pods is None:
        pods, hidden = if_allowed(lambda: jobs.api.list(PODS, fields=fields)[0])
        if pods is None:
            text = f"{NOT_CHECKED}whether {needs.scheduler} runs: {hidden}"
            return PreflightFinding(SCHEDULER, "unknown", text)
    return check_scheduler(needs.scheduler, pods, usual=needs.usual_scheduler, now=time.time())


def _unattended_jobs(jobs: ClusterJobs) -> Iterator[PreflightFinding]:
    """Yield why jobs of this kind here have no pods, if a controller or a scheduler has not looked at them."""
    now = time.time()
    items, _ = if_allowed(lambda: jobs.api.list(jobs.kind.resource, labels=OURS)[0])
    waiting = (
        item for item in items or () if jobs.kind.phase(item, [])[0] is Phase.PENDING and not is_young(item, now)
    )
    for item in islice(waiting, _JOBS_ASKED):
        reason = jobs.reason_without_pods(item, now)
        if reason.endswith("is it running?"):
            yield PreflightFinding(SCHEDULER, "later", f"job {item['metadata']['name']} waits: {reason}")


SUBMIT_CHECKS: tuple[Check, ...] = (_claims, _named, _quotas, _nodes, _other_scheduler)
"""The questions of submit before it creates a job, and of doctor."""
DOCTOR_CHECKS: tuple[Check, ...] = (_image, _usual_scheduler, _rank_table)
"""Further questions of doctor: they take longer, or can only say that a fact is not known."""


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
