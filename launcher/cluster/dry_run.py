"""Whether the cluster takes a job, asked before anything exists: its kind, its queue, each object (a dry run).

And whether it has what the job's pods need.
"""

from typing import TYPE_CHECKING

from launcher.cluster.surroundings import look_around
from launcher.errors import PreflightError, RequestError
from launcher.kube.api import TAKEN, ApiError, Json
from launcher.kube.resources import CONFIG_MAPS, QUEUES, SERVICES
from launcher.settings.spec import JobSpec

if TYPE_CHECKING:
    from launcher.cluster.jobs import ClusterBackend

PART_RESOURCES = {"ConfigMap": CONFIG_MAPS, "Service": SERVICES}
"""What belongs to a job beside its pods."""
_TRIAL = "-check"


def check(backend: "ClusterBackend", spec: JobSpec, objects: list[Json]) -> list[str]:
    """Have the server judge the job and what belongs to it without creating them; what it warned of.

    Raises:
        PreflightError: the namespace, the kind of job or the queue is missing or closed; a claim cannot be used, or no
            node is large enough.
        RequestError: the job is not valid; every cause is named.
    """
    api = backend.api
    warnings: list[str] = []
    if not backend.served():
        raise PreflightError(
            f"{api.origin}: serves no {backend.kind.resource}: is Volcano installed? Without it, use --backend batch"
        )
    if backend.name == "volcano":
        _check_queue(backend, spec.pods.queue)
    for item in reversed(objects):
        # The same names may still be taken by the attempt that this one replaces.
        name = item["metadata"]["name"]
        trial = {**item, "metadata": {**item["metadata"], "name": f"{name}{_TRIAL}"}}
        try:
            api.create(PART_RESOURCES.get(item["kind"], backend.kind.resource), trial, dry_run=True, warnings=warnings)
        except ApiError as error:
            # Whether the name is taken is looked up last of all: the object itself is accepted.
            if error.status != TAKEN:
                raise explained(error, backend, trial_of=name) from error
    for found in look_around(api, spec.pods, spec.train):
        if found.state == "missing":
            raise PreflightError(found.text)
        if found.state == "later":
            warnings.append(found.text)
    return warnings


def _check_queue(backend: "ClusterBackend", queue: str) -> None:
    """Volcano's webhook refuses the same, where it is installed; without it the job would wait for ever."""
    try:
        found = backend.api.find(QUEUES, queue)
    except ApiError as error:
        if error.status == 403:
            return  # only the administrator may look; the webhook decides
        raise
    if found is None:
        raise PreflightError(
            f"--queue {queue}: there is no such queue in {backend.api.origin}; see `kubectl get queues`"
        )
    state = (found.get("status") or {}).get("state", "Open")
    if state != "Open":
        raise PreflightError(f"--queue {queue}: it is {state}, and takes no jobs; choose another or have it opened")


def explained(error: ApiError, backend: "ClusterBackend", *, trial_of: str = "") -> Exception:
    """What the refusal of an object means: the job's fault, the cluster's, or nobody's."""
    namespace, text = backend.api.namespace, str(error)
    text = text.replace(f"{trial_of}{_TRIAL}", trial_of) if trial_of else text
    if error.status == 404 and "namespaces" in text:
        return PreflightError(f"namespace {namespace}: there is none in {backend.api.origin}; choose --namespace")
    if error.status == 403 and "being terminated" in text:
        return PreflightError(f"namespace {namespace} is being deleted: wait until it is gone, or choose --namespace")
    if error.status == 403 and "exceeded quota" in text:
        return PreflightError(f"no room for the job: {text}; make room, or ask for a larger quota")
    if error.of_rights or error.status not in (400, 403, 422):
        return error
    return RequestError(f"the cluster refuses the job: {text}")
