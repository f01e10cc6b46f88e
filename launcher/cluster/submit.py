"""Creating a job on a cluster: all of it or nothing, and never twice.

The server judges the job before anything exists (dry run). What belongs to the job is created first, because
MindCluster's controller looks for the rank table's ConfigMap once; it is handed to the job at the end, so that both go
together. A creation whose answer was lost is looked up, not repeated.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from launcher import PROGRAM
from launcher.cluster import saved_attempt as handover
from launcher.cluster.dry_run import PART_RESOURCES, check, explained
from launcher.cluster.kinds import attempt_of, is_part_of, owner, spec_of
from launcher.errors import ConflictError, LauncherError, UnreachableError
from launcher.exits import defer_signals
from launcher.jobs import JobRef, Submitted
from launcher.kube.api import TAKEN, Api, ApiError, Json
from launcher.kube.resources import Resource
from launcher.manifests.labels import SPEC_HASH
from launcher.manifests.render import render
from launcher.settings.spec import JobSpec, free_name, renamed

if TYPE_CHECKING:
    from launcher.cluster.jobs import ClusterBackend

_SHOWN_DIFFERENCES = 5
# What a launcher does between a part and its job takes less.
_SIBLING_S, _LOOK_S = 10.0, 0.5


class _Overtaken(LauncherError):  # noqa: N818  # what happened, and no error of anybody's
    """Another launcher has created the job meanwhile."""


def create(backend: "ClusterBackend", spec: JobSpec, *, again: bool) -> Submitted:
    """Create the job, or find that it is there already.

    Raises:
        ConflictError: another job has this name, or the same one has ended.
        PreflightError: the cluster lacks something.
        RequestError: the server refuses the job.
    """
    existing = backend.api.find(backend.kind.resource, spec.name)
    before = 0
    if existing is not None and "deletionTimestamp" not in existing["metadata"]:
        state = backend.state_of(existing, backend.pods(spec.name))
        if again and state.phase.ended and not spec.continues and _is(existing, spec):
            return create(backend, renamed(spec, _next_name(backend, spec)), again=False)
        if not spec.continues or not state.phase.ended:
            return _same(backend, existing, spec, ended=state.phase.value if state.phase.ended else None)
        before = state.attempt
    elif existing is not None and spec.continues:
        before = attempt_of(existing)
    elif spec.continues and (kept := backend.kept(spec.name)):
        before = kept.attempt
    objects = render(spec, attempt=before + 1)
    warnings = check(backend, spec, objects)
    if existing is not None:
        _refuse_foreign(backend, spec, objects[:-1])
    try:
        with _handed_over(backend, spec, existing, warnings):
            _make_way(backend, spec, objects[:-1])
            with defer_signals():
                _create_all(backend, spec, objects, warnings)
                handover.drop(backend.api, backend.name, spec.name)
    except _Overtaken:
        return create(backend, spec, again=again)
    except KeyboardInterrupt as interrupt:
        # With --again it has another name than was asked for.
        interrupt.args = (spec.name,)
        raise
    return Submitted(JobRef(backend.name, spec.name), note="; ".join(warnings), attempt=before + 1)


@contextmanager
def _handed_over(
    backend: "ClusterBackend", spec: JobSpec, existing: Json | None, warnings: list[str]
) -> Iterator[None]:
    """Remove the job that has the name, without losing what an attempt that is continued was given."""
    if existing is None:
        yield
        return
    if spec.continues:
        warnings += handover.keep(backend.api, backend.name, existing)
    removed = False
    try:
        backend.remove(spec.name, uid=existing["metadata"]["uid"])
        removed = True
        time.sleep(backend.kind.settle_s)
        yield
    except LauncherError as error:
        if isinstance(error, ConflictError) and not removed:
            handover.drop(backend.api, backend.name, spec.name)  # the job is there, with its settings
        elif spec.continues and not isinstance(error, _Overtaken):
            where = f"configmap {handover.name_of(backend.name, spec.name)}"
            error.args = (f"{error}; the settings of job {spec.name} are kept in {where}: type the same again",)
        raise


def foresee(backend: "ClusterBackend", spec: JobSpec, *, again: bool) -> str:
    """What a submit would find under the job's name, if it is worth a word; nothing is changed.

    Raises:
        ConflictError: another job, or the same one, which has ended.
    """
    existing = backend.api.find(backend.kind.resource, spec.name)
    if existing is None or "deletionTimestamp" in existing["metadata"]:
        return ""
    ended = backend.state_of(existing, backend.pods(spec.name)).phase
    if ended.ended and (spec.continues or (again and _is(existing, spec))):
        return ""
    _refuse_another(existing, spec, ended=ended.value if ended.ended else None)
    return _already(spec)


def _same(backend: "ClusterBackend", existing: Json, spec: JobSpec, *, ended: str | None) -> Submitted:
    """The job that is there is the one that was asked for, and goes on.

    Raises:
        ConflictError: it is another one, or has ended.
    """
    _refuse_another(existing, spec, ended=ended)
    warnings: list[str] = []
    with suppress(LauncherError):  # it goes on all the same
        _own_the_unowned(backend, spec, existing, warnings)
    note = "; ".join([_already(spec), *warnings])
    return Submitted(JobRef(backend.name, spec.name), note=note, existed=True)


def _already(spec: JobSpec) -> str:
    return f"job {spec.name} is already running: the same job was submitted before"


def _refuse_another(existing: Json, spec: JobSpec, *, ended: str | None) -> None:
    if not _is(existing, spec):
        raise ConflictError(
            f"there is another job {spec.name}: {_difference(existing, spec)}; choose another --name, or "
            f"`{PROGRAM} delete {spec.name}`"
        )
    if ended is not None:
        raise ConflictError(
            f"job {spec.name}, the same one, has ended already ({ended}): --again starts a new one, "
            f"--name {spec.name} --resume auto continues it"
        )


def _is(job: Json, spec: JobSpec) -> bool:
    return (job["metadata"].get("labels") or {}).get(SPEC_HASH) == spec.digest[:16]


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


def _next_name(backend: "ClusterBackend", spec: JobSpec) -> str:
    """The first that is free, or whose job is this one and goes on: who types the same twice wants it once more."""

    def passed(tried: str) -> bool:
        job = backend.api.find(backend.kind.resource, tried)
        return job is not None and (not _is(job, spec) or backend.kind.phase(job, ())[0].ended)

    return free_name(spec.name, passed)


def _create_all(backend: "ClusterBackend", spec: JobSpec, objects: list[Json], warnings: list[str]) -> None:
    *parts, job = objects
    made: list[tuple[Resource, Json]] = []
    try:
        for part in parts:
            resource = PART_RESOURCES[part["kind"]]
            made.append((resource, _create_part(backend, resource, part, warnings)))
        created = _create_job(backend, spec, job, warnings)
    except UnreachableError:
        raise  # the job may be there, and need its parts
    except LauncherError:
        for resource, part in made:
            # Only what this launcher has made; that it could not be taken away is not what went wrong.
            with suppress(LauncherError):
                backend.api.delete(resource, part["metadata"]["name"], uid=part["metadata"]["uid"])
        raise
    for resource, part in made:
        _own(backend.api, resource, part["metadata"]["name"], created, warnings)


def _own(api: Api, resource: Resource, name: str, job: Json, warnings: list[str]) -> None:
    """Have a part of the job go with it. The job runs whether that can be or not."""
    try:
        api.patch(resource, name, {"metadata": {"ownerReferences": [owner(job, controller=False)]}})
    except LauncherError as error:
        warnings.append(f"{resource} {name} will stay when the job goes, until the same is submitted again: {error}")


def _own_the_unowned(backend: "ClusterBackend", spec: JobSpec, job: Json, warnings: list[str]) -> None:
    """Finish what a launcher began that did not come that far. Nothing is made anew: MindCluster looks only once."""
    *parts, _ = render(spec, attempt=attempt_of(job))
    for part in parts:
        resource, name = PART_RESOURCES[part["kind"]], part["metadata"]["name"]
        found = backend.api.find(resource, name)
        if found is not None and is_part_of(found, spec.name) and not found["metadata"].get("ownerReferences"):
            _own(backend.api, resource, name, job, warnings)


def _refuse_foreign(backend: "ClusterBackend", spec: JobSpec, parts: list[Json]) -> None:
    """Before the job is removed that has the name.

    Raises:
        ConflictError: something that is not a launcher's has the name of a part.
    """
    for part in parts:
        _left_of(backend, spec, PART_RESOURCES[part["kind"]], part["metadata"]["name"])


def _left_of(backend: "ClusterBackend", spec: JobSpec, resource: Resource, name: str) -> Json | None:
    """A part of this name that an earlier job has left.

    Raises:
        ConflictError: it is not a launcher's.
    """
    left = backend.api.find(resource, name)
    if left is not None and not is_part_of(left, spec.name):
        raise ConflictError(f"{resource} {name} exists and is not a launcher's: remove it, or choose another --name")
    return left


def _make_way(backend: "ClusterBackend", spec: JobSpec, parts: list[Json]) -> None:
    """A leftover of an earlier job of this name would be read as this one's: it is removed.

    Raises:
        ConflictError: it is not a launcher's.
        _Overtaken: another launcher is creating the job.
    """
    for part in parts:
        resource, name = PART_RESOURCES[part["kind"]], part["metadata"]["name"]
        deadline = time.monotonic() + _SIBLING_S
        while (left := _left_of(backend, spec, resource, name)) is not None:
            if backend.api.find(backend.kind.resource, spec.name) is not None:
                raise _Overtaken
            if left["metadata"].get("ownerReferences") or time.monotonic() > deadline:
                backend.api.delete(resource, name, uid=left["metadata"]["uid"])
                break
            # It has no job yet: another launcher may be about to create it.
            time.sleep(_LOOK_S)


def _create_part(backend: "ClusterBackend", resource: Resource, part: Json, warnings: list[str]) -> Json:
    try:
        return backend.api.create(resource, part, warnings=warnings)
    except ApiError as error:
        if error.status == TAKEN:
            raise _Overtaken from error
        raise


def _create_job(backend: "ClusterBackend", spec: JobSpec, job: Json, warnings: list[str]) -> Json:
    try:
        return backend.api.create(backend.kind.resource, job, warnings=warnings)
    except (UnreachableError, ApiError) as error:
        if isinstance(error, ApiError) and error.status not in (TAKEN, 500, 502, 503, 504):
            raise explained(error, backend) from error
        # It may have been created all the same: by this request, whose answer was lost, or by another launcher.
        try:
            found = backend.api.find(backend.kind.resource, spec.name)
        except LauncherError:
            unknown = f"nobody knows whether job {spec.name} was created: see `{PROGRAM} status {spec.name}`"
            raise UnreachableError(f"{error}; {unknown}") from error
        if found is None and isinstance(error, UnreachableError):
            # What belongs to it stays for it: a server that is slow may create it yet.
            raise UnreachableError(f"{error}; job {spec.name} is not there so far: type the same again") from error
        if found is None:
            raise
        if _is(found, spec) and attempt_of(found) == attempt_of(job):
            return found
        raise _Overtaken from error
