"""Creating a job on a cluster: all of it or nothing, and never twice.

The server judges the job before anything exists (dry run). What belongs to the job is created first, because
MindCluster's controller looks for the rank table's ConfigMap once; it is handed to the job at the end, so that both go
together. A creation whose answer was lost is looked up, not repeated.
"""

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from launcher.backends import JobRef, Submitted
from launcher.backends.kinds import attempt_of, owner, spec_of
from launcher.errors import ConflictError, LauncherError, PreflightError, RequestError, UnreachableError
from launcher.interrupts import undisturbed
from launcher.kube.api import ApiError, Json
from launcher.kube.resources import CONFIG_MAPS, QUEUES, SERVICES, Resource
from launcher.names import JOB, MANAGED, SPEC_HASH
from launcher.render import render
from launcher.spec import JobSpec, free_name, renamed

if TYPE_CHECKING:
    from launcher.backends.cluster import ClusterBackend

_RESOURCES = {"ConfigMap": CONFIG_MAPS, "Service": SERVICES}
_SHOWN_DIFFERENCES = 5


def create(backend: "ClusterBackend", spec: JobSpec, *, again: bool) -> Submitted:
    """Create the job, or find that it is there already.

    Raises:
        ConflictError: another job has this name, or the same one has ended.
        PreflightError: the cluster lacks something.
        RequestError: the server refuses the job.
    """
    ref = JobRef(backend.name, spec.name)
    existing = backend.api.find(backend.kind.resource, spec.name)
    attempt = 1
    if existing is not None and "deletionTimestamp" in existing["metadata"]:
        backend.remove(spec.name, uid=existing["metadata"]["uid"])
    elif existing is not None:
        state = backend.state_of(existing, backend.pods(spec.name))
        if again and state.phase.ended and not spec.continues:
            return create(backend, renamed(spec, _next_name(backend, spec.name)), again=False)
        if not spec.continues or not state.phase.ended:
            return _same_or_conflict(existing, spec, ref, ended=state.phase.value if state.phase.ended else None)
        attempt = state.attempt + 1
    objects = render(spec, attempt=attempt)
    check(backend, spec, objects[-1])
    if attempt > 1 and existing is not None:
        backend.remove(spec.name, uid=existing["metadata"]["uid"])
    with undisturbed():
        _create_all(backend, spec, objects)
    return Submitted(ref, note="; ".join(dict.fromkeys(backend.api.warnings)), attempt=attempt)


def check(backend: "ClusterBackend", spec: JobSpec, job: Json) -> list[str]:
    """Have the server judge the job without creating it; what it warned of.

    Raises:
        PreflightError: the namespace, the kind of job or the queue is missing or closed.
        RequestError: the job is not valid; every cause is named.
    """
    api = backend.api
    if not backend.served():
        raise PreflightError(
            f"{api.origin}: serves no {backend.kind.resource}: is Volcano installed? Without it, use --backend batch"
        )
    if backend.name == "volcano":
        _check_queue(backend, spec.pods.queue)
    # The same name may still be taken by the attempt that this one replaces.
    trial = {**job, "metadata": {**job["metadata"], "name": f"{spec.name}-check"}}
    try:
        api.create(backend.kind.resource, trial, dry_run=True)
    except ApiError as error:
        raise _explained(error, backend, spec) from error
    return api.warnings


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


def _explained(error: ApiError, backend: "ClusterBackend", spec: JobSpec) -> Exception:
    namespace = backend.api.namespace
    if error.status == 404 and "namespaces" in str(error):
        return PreflightError(f"namespace {namespace}: there is none in {backend.api.origin}; choose --namespace")
    if error.status in (401, 403) and "denied the request" not in str(error):
        return error
    if error.status in (400, 403, 422):
        text = str(error).replace(f"{spec.name}-check", spec.name)
        return RequestError(f"the cluster refuses the job: {text}")
    return error


def _same_or_conflict(existing: Json, spec: JobSpec, ref: JobRef, *, ended: str | None) -> Submitted:
    if existing["metadata"].get("labels", {}).get(SPEC_HASH) == spec.digest[:16]:
        if ended is None:
            return Submitted(
                ref, note=f"job {spec.name} is already running: the same job was submitted before", existed=True
            )
        raise ConflictError(
            f"job {spec.name}, the same one, has ended already ({ended}): --again starts a new one, "
            f"--name {spec.name} --resume auto continues it"
        )
    raise ConflictError(
        f"there is another job {spec.name}: {_difference(existing, spec)}; choose another --name, or "
        f"`python -m launcher delete {spec.name}`"
    )


def _difference(existing: Json, spec: JobSpec) -> str:
    """The settings in which the two jobs differ."""
    old = _flat(spec_of(existing))
    new = _flat(spec.model_dump(mode="json"))
    if not old:
        return "it was not made by a launcher"
    changed = [
        f"{name} is {old.get(name)}, not {value}" for name, value in new.items() if old.get(name, value) != value
    ]
    more = f" and {len(changed) - _SHOWN_DIFFERENCES} more" if len(changed) > _SHOWN_DIFFERENCES else ""
    return ", ".join(changed[:_SHOWN_DIFFERENCES]) + more or "other settings are given"


def _flat(spec: dict[str, Any]) -> dict[str, Any]:
    parts = (spec, spec.get("train", {}), spec.get("pods", {}))
    return {name: value for part in parts for name, value in part.items() if name not in ("train", "pods", "name")}


def _next_name(backend: "ClusterBackend", name: str) -> str:
    return free_name(name, lambda tried: backend.api.find(backend.kind.resource, tried) is not None)


def _create_all(backend: "ClusterBackend", spec: JobSpec, objects: list[Json]) -> None:
    *parts, job = objects
    made: list[tuple[Resource, Json]] = []
    try:
        for part in parts:
            resource = _RESOURCES[part["kind"]]
            made.append((resource, _create_part(backend, resource, part)))
        created = _create_job(backend, spec, job)
    except LauncherError:
        for resource, part in made:
            # Only what this launcher has made; that it could not be taken away is not what went wrong.
            with suppress(LauncherError):
                backend.api.delete(resource, part["metadata"]["name"], uid=part["metadata"]["uid"])
        raise
    reference = {"metadata": {"ownerReferences": [owner(created, controller=False)]}}
    for resource, part in made:
        backend.api.patch(resource, part["metadata"]["name"], reference)


def _create_part(backend: "ClusterBackend", resource: Resource, part: Json) -> Json:
    """A leftover of an earlier job of this name would be read as this one's: it is replaced."""
    name = part["metadata"]["name"]
    left = backend.api.find(resource, name)
    if left is not None:
        if (
            not (left["metadata"].get("labels") or {}).items()
            >= {JOB: part["metadata"]["labels"][JOB], **MANAGED}.items()
        ):
            raise ConflictError(
                f"{resource} {name} exists and is not a launcher's: remove it, or choose another --name"
            )
        backend.api.delete(resource, name, uid=left["metadata"]["uid"])
    return backend.api.create(resource, part)


def _create_job(backend: "ClusterBackend", spec: JobSpec, job: Json) -> Json:
    try:
        return backend.api.create(backend.kind.resource, job)
    except (UnreachableError, ApiError) as error:
        if isinstance(error, ApiError) and error.status not in (409, 500, 502, 503, 504):
            raise _explained(error, backend, spec) from error
        # It may have been created all the same: by this request, whose answer was lost, or by another launcher.
        found = backend.api.find(backend.kind.resource, spec.name)
        if found is None or found["metadata"]["labels"].get(SPEC_HASH) != spec.digest[:16]:
            raise
        if attempt_of(found) != attempt_of(job):
            raise
        return found
