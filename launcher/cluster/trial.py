"""The server's own judgement of a job, without creating anything: it tries each object, and one of the job's pods."""

from collections.abc import Sequence
from dataclasses import replace

from launcher.cluster.jobs import ClusterJobs
from launcher.cluster.refusals import is_no_trial, pod_refusal, translate_refusal
from launcher.cluster.schedulers import DEFAULT
from launcher.errors import ApiError, PreflightError, RequestError
from launcher.jobs import KIND_NAMES, NOT_CHECKED, PreflightFinding
from launcher.kinds import Kind, pod_template
from launcher.kinds.needs import JobNeeds
from launcher.kube.api import TAKEN, Json
from launcher.kube.resources import CONFIG_MAPS, PODS, SERVICES
from launcher.settings.spec import JobSpec

PART_RESOURCES = {"ConfigMap": CONFIG_MAPS, "Service": SERVICES}
"""The kinds of object that a job needs in addition to its pods."""
_TRIAL_SUFFIX = "-check"


def needs_of(kind: Kind, spec: JobSpec, objects: Sequence[Json]) -> JobNeeds:
    """Return what the rendered job asks of a cluster."""
    job = objects[-1]
    pod = pod_template(kind, job)["spec"]
    if not isinstance(pod, dict):
        pod = {}  # the overlay has another form: the server refuses it
    of_overlay = pod.get("schedulerName")
    scheduler = of_overlay or job["spec"].get("schedulerName") or DEFAULT
    options = spec.pods
    return JobNeeds(pod, spec.train.nodes, options.resource, options, scheduler, usual_scheduler=of_overlay is None)


def check_served(jobs: ClusterJobs) -> None:
    """Check that the cluster serves this kind of job.

    Raises:
        PreflightError: it does not.
    """
    if not jobs.served():
        # Every cluster serves the last kind.
        hint = f"is {jobs.kind.title} installed? Without it, use --backend {KIND_NAMES[-1]}"
        raise PreflightError(f"{jobs.api.origin}: serves no {jobs.kind.resource}: {hint}")


def try_objects(jobs: ClusterJobs, objects: Sequence[Json], warnings: list[str]) -> None:
    """Have the server try the job and its parts.

    Args:
        warnings: receives the server's warnings.

    Raises:
        PreflightError: the namespace is missing, or has no room.
        RequestError: the job is not valid.
        ApiError: the user has no right to create it.
    """
    api = jobs.api
    for item in reversed(objects):
        # The attempt that this one replaces may still have the names.
        name = item["metadata"]["name"]
        trial = {**item, "metadata": {**item["metadata"], "name": f"{name}{_TRIAL_SUFFIX}"}}
        try:
            api.create(PART_RESOURCES.get(item["kind"], jobs.kind.resource), trial, dry_run=True, warnings=warnings)
        except ApiError as error:
            if is_no_trial(error):
                warnings.append(f"{NOT_CHECKED}{item['kind']} {name}: {error}")
            # The server looks last at whether the name is taken: it accepts the object itself.
            elif error.status != TAKEN:
                raise translate_refusal(error, api, trial=f"{name}{_TRIAL_SUFFIX}", name=name) from error


def trial_finding(jobs: ClusterJobs, objects: Sequence[Json]) -> PreflightFinding:
    """Return what the server says of the job and its parts.

    Raises:
        LauncherError: the server does not judge.
    """
    warnings: list[str] = []
    try:
        check_served(jobs)
        try_objects(jobs, objects, warnings)
    except (PreflightError, RequestError) as error:
        about = "namespace" if str(error).startswith("namespace ") else "job"
        return PreflightFinding(about, "missing", str(error))
    except ApiError as error:
        if not error.of_rights:
            raise
        return PreflightFinding("job", "unknown", f"{NOT_CHECKED}whether the server accepts it: {error}")
    if any(text.startswith(NOT_CHECKED) for text in warnings):
        return PreflightFinding("job", "unknown", "; ".join(warnings))
    return PreflightFinding("job", "ok", "; ".join(["the server accepts it", *warnings]))


def try_pod(jobs: ClusterJobs, needs: JobNeeds, job: Json) -> tuple[PreflightFinding, JobNeeds]:
    """Have the server try one pod, as the job's controller would make it.

    Return the finding, and the needs with the pod as the server has completed it: with the defaults of a LimitRange.
    """
    template, name = pod_template(jobs.kind, job), f"{job['metadata']['name']}{_TRIAL_SUFFIX}"
    # Policies for pods without an owner do not apply to the job's pods.
    owner = {"apiVersion": job["apiVersion"], "kind": job["kind"], "name": name, "uid": name, "controller": True}
    metadata = {**template.get("metadata", {}), "name": name, "ownerReferences": [owner]}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": needs.pod}
    try:
        pod = jobs.api.create(PODS, body, dry_run=True)
    except ApiError as error:
        if error.status != TAKEN:
            finding = pod_refusal(error)
            return finding, replace(needs, tried=finding.state != "unknown")
        pod = body
    text = "the namespace admits them: Pod Security, quotas, limits, accounts"
    return PreflightFinding("pods", "ok", text), replace(needs, pod=pod["spec"], tried=True)
