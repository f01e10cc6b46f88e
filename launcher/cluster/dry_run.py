"""The cluster's judgement of a job before anything exists: its kind, its objects, and what its pods need."""

from collections.abc import Sequence

from launcher.cluster.jobs import ClusterJobs
from launcher.cluster.preflight import check_cluster
from launcher.errors import ApiError, LauncherError, PreflightError, RequestError
from launcher.jobs import KIND_NAMES
from launcher.kube.api import TAKEN, Api, Json
from launcher.kube.resources import CONFIG_MAPS, SERVICES
from launcher.settings.spec import JobSpec

PART_RESOURCES = {"ConfigMap": CONFIG_MAPS, "Service": SERVICES}
"""The kinds of object that a job needs in addition to its pods."""
_TRIAL_SUFFIX = "-check"


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
        return PreflightError(f"namespace {api.namespace}: there is none in {api.origin}; choose --namespace")
    if error.status == 403 and "being terminated" in text:
        return PreflightError(
            f"namespace {api.namespace} is being deleted: wait until it is gone, or choose --namespace"
        )
    if error.status == 403 and "exceeded quota" in text:
        return PreflightError(f"no room for the job: {text}; make room, or ask for a larger quota")
    if error.of_rights or error.status not in (400, 403, 422):
        return error
    return RequestError(f"the cluster refuses the job: {text}")
