"""Creating a job on a cluster: all of it or nothing, and never twice.

The server judges the job before anything exists (dry run). The job's parts are created first, because MindCluster's
controller looks for the rank table's ConfigMap only once; at the end the job becomes their owner, so that the cluster
deletes them together. A creation whose answer was lost is looked up, not repeated.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from launcher import PROGRAM
from launcher.cluster import saved_attempt
from launcher.cluster.jobs import ClusterJobs
from launcher.cluster.preflight import judge
from launcher.cluster.refusals import translate_refusal
from launcher.cluster.same_job import difference_text, is_same_job, running_note
from launcher.cluster.saved_attempt import SavedAttempt
from launcher.cluster.trial import PART_RESOURCES
from launcher.errors import ApiError, ConflictError, EndedError, LauncherError, UnreachableError
from launcher.exits import defer_signals
from launcher.jobs import JobRef, Submitted
from launcher.kinds.labels import EARLIER_ANNOTATION
from launcher.kinds.objects import attempt_number, is_part_of, owner_reference
from launcher.kube.api import TAKEN, Json
from launcher.manifests.render import render_manifests
from launcher.settings.spec import JobSpec, free_name

SIBLING_S = 10.0
"""Seconds within which another launcher creates the job of a part that it has created."""
_LOOK_S = 0.5


class _CreatedByAnotherError(LauncherError):
    """Another launcher has created the job meanwhile."""


def submit_job(jobs: ClusterJobs, spec: JobSpec, *, sibling_s: float = SIBLING_S) -> Submitted:
    """Create the job, or find that it is running already.

    Raises:
        ConflictError: another job has this name, or the same one has ended.
        PreflightError: the cluster lacks something.
        RequestError: the server refuses the job.
    """
    try:
        return _Submission(jobs, spec, sibling_s).run()
    except _CreatedByAnotherError:
        return submit_job(jobs, spec, sibling_s=sibling_s)  # it is found now


def is_running(jobs: ClusterJobs, spec: JobSpec, existing: Json | None) -> bool:
    """Return whether `existing`, the object of the job's name, is the same job and still runs.

    If not, a submit creates the job: its name is free, or the job of this name has ended and `spec` continues it.

    Raises:
        ConflictError: another job has the name, or the same one has ended.
    """
    if existing is None or "deletionTimestamp" in existing["metadata"]:
        return False
    name = spec.name
    phase, _ = jobs.kind.phase(existing, jobs.pods(name))
    if phase.ended and spec.continues:
        return False
    if not is_same_job(existing, spec):
        difference = difference_text(existing, spec)
        remedy = f"choose another --name, or `{PROGRAM} delete {name}`"
        raise ConflictError(f"there is another job {name}: {difference}; {remedy}")
    if phase.ended:
        raise EndedError(
            f"job {name}, the same one, has ended already ({phase.value}): --again starts a new one, "
            f"--name {name} --resume auto continues it"
        )
    return True


def name_for_another_run(jobs: ClusterJobs, spec: JobSpec) -> str:
    """Return the name under which the same job runs once more after its end.

    It is the first name that is free, or whose job is the same and runs: a repeated command wants one more run only.
    """

    def has_passed(name: str) -> bool:
        job = jobs.find(name)
        return job is not None and (not is_same_job(job, spec) or jobs.kind.phase(job, jobs.pods(name))[0].ended)

    existing = jobs.find(spec.name)
    return spec.name if existing is None or not is_same_job(existing, spec) else free_name(spec.name, has_passed)


@dataclass
class _Submission:
    """One try to create a job.

    Attributes:
        warnings: what the server says on the way.
        new_parts: the parts of the job that exist already.
    """

    jobs: ClusterJobs
    spec: JobSpec
    sibling_s: float
    warnings: list[str] = field(default_factory=list)
    new_parts: list[Json] = field(default_factory=list)

    def run(self) -> Submitted:
        """Create the job, or find it.

        Raises:
            _CreatedByAnotherError: another launcher was faster.
        """
        spec, name = self.spec, self.spec.name
        ref, existing = JobRef(self.jobs.name, name), self.jobs.find(name)
        if existing is not None and is_running(self.jobs, spec, existing):
            with suppress(LauncherError):  # the job runs with or without it
                self._adopt_orphans(existing)
            return Submitted(ref, notes=(running_note(existing, spec), *self.warnings), existed=True)
        earlier = self.jobs.attempt_to_continue(name, existing) if spec.continues else None
        attempt = 1 if earlier is None else earlier.latest + 1
        objects = render_manifests(spec, self.jobs.kind, attempt=attempt)
        if earlier is not None:
            objects[-1]["metadata"]["annotations"][EARLIER_ANNOTATION] = earlier.to_json()
            if earlier.attempt != earlier.latest:
                refused = f"the trainer refused attempt {earlier.latest}, whose settings do not count"
                self.warnings.append(f"{refused}: attempt {attempt} continues attempt {earlier.attempt}")
        self.warnings += judge(self.jobs, spec, objects)
        if existing is not None:
            # Before the removal: a foreign object in the way must not cost the last attempt.
            for part in objects[:-1]:
                self._find_leftover(part)
        with self._replaced(existing, earlier):
            self._delete_leftovers(objects[:-1])
            with defer_signals():
                self._create_all(objects)
                saved_attempt.drop(self.jobs.api, self.jobs.name, name)
        return Submitted(ref, notes=tuple(self.warnings), attempt=attempt)

    @contextmanager
    def _replaced(self, existing: Json | None, earlier: SavedAttempt | None) -> Iterator[None]:
        """Remove the ended job that has the name, and keep `earlier` saved until the next attempt exists."""
        if existing is None:
            yield
            return
        api, kind, name = self.jobs.api, self.jobs.name, self.spec.name
        if earlier is not None:
            self.warnings += saved_attempt.save(api, kind, name, earlier)
        removed = False
        try:
            self.jobs.remove(existing)
            removed = True
            time.sleep(self.jobs.kind.settle_s)
            yield
        except _CreatedByAnotherError:
            raise
        except LauncherError as error:
            if isinstance(error, ConflictError) and not removed:
                saved_attempt.drop(api, kind, name)  # the job still has its settings
            elif earlier is not None:
                config_map = saved_attempt.config_map_name(kind, name)
                hint = f"the settings of job {name} are kept in configmap {config_map}: type the same again"
                raise error.with_hint(hint) from error
            raise

    def _create_all(self, objects: Sequence[Json]) -> None:
        *parts, job = objects
        try:
            for part in parts:
                self._create_part(part)
            owner = self._create_job(job)
        except UnreachableError:
            raise  # the job may exist, and need its parts
        except LauncherError:
            for part in self.new_parts:
                # A failed clean-up must not hide the first error.
                with suppress(LauncherError):
                    self._delete_part(part)
            raise
        for part in self.new_parts:
            self._set_owner(part, owner)

    def _create_part(self, part: Json) -> None:
        try:
            self.new_parts.append(self.jobs.api.create(PART_RESOURCES[part["kind"]], part, warnings=self.warnings))
        except ApiError as error:
            if error.status == TAKEN:
                raise _CreatedByAnotherError from error
            raise

    def _create_job(self, job: Json) -> Json:
        api, name = self.jobs.api, self.spec.name
        try:
            return api.create(self.jobs.kind.resource, job, warnings=self.warnings)
        except (UnreachableError, ApiError) as error:
            if isinstance(error, ApiError) and error.status not in (TAKEN, 500, 502, 503, 504):
                raise translate_refusal(error, api) from error
            # The job may exist all the same: by this request, whose answer was lost, or by another launcher's.
            try:
                existing = self.jobs.find(name)
            except LauncherError:
                unknown = f"it is unknown whether job {name} was created: see `{PROGRAM} status {name}`"
                raise UnreachableError(f"{error}; {unknown}") from error
            if existing is None and isinstance(error, UnreachableError):
                # Its parts stay: a slow server may still create it.
                raise UnreachableError(f"{error}; job {name} is not there so far: type the same again") from error
            if existing is None:
                raise
            if is_same_job(existing, self.spec) and attempt_number(existing) == attempt_number(job):
                return existing
            raise _CreatedByAnotherError from error

    def _delete_part(self, part: Json) -> None:
        meta = part["metadata"]
        self.jobs.api.delete(PART_RESOURCES[part["kind"]], meta["name"], uid=meta["uid"])

    def _set_owner(self, part: Json, job: Json) -> None:
        """Have the cluster delete a part together with the job. The job runs even if that fails."""
        resource, name = PART_RESOURCES[part["kind"]], part["metadata"]["name"]
        reference = owner_reference(job, controller=False)
        try:
            self.jobs.api.patch(resource, name, {"metadata": {"ownerReferences": [reference]}})
        except LauncherError as error:
            self.warnings.append(
                f"{resource} {name} will stay when the job goes, until the same is submitted again: {error}"
            )

    def _adopt_orphans(self, job: Json) -> None:
        """Set the owner of parts whose launcher did not come that far. Do not recreate them: MindCluster looks once."""
        *parts, _ = render_manifests(self.spec, self.jobs.kind, attempt=attempt_number(job))
        for part in parts:
            orphan = self._find_leftover(part)
            if orphan is not None and not orphan["metadata"].get("ownerReferences"):
                self._set_owner(orphan, job)

    def _find_leftover(self, part: Json) -> Json | None:
        """Return the part of this name that an earlier job has left.

        Raises:
            ConflictError: no launcher made it.
        """
        resource, name = PART_RESOURCES[part["kind"]], part["metadata"]["name"]
        leftover = self.jobs.api.find(resource, name)
        if leftover is not None and not is_part_of(leftover, self.spec.name):
            raise ConflictError(
                f"{resource} {name} exists and is not a launcher's: remove it, or choose another --name"
            )
        return leftover

    def _delete_leftovers(self, parts: Sequence[Json]) -> None:
        """Remove leftovers of an earlier job of this name: the cluster would read them as this job's.

        Raises:
            ConflictError: no launcher made them.
            _CreatedByAnotherError: another launcher is creating the job.
        """
        for part in parts:
            deadline = time.monotonic() + self.sibling_s
            while (leftover := self._find_leftover(part)) is not None:
                if self.jobs.find(self.spec.name) is not None:
                    raise _CreatedByAnotherError
                if leftover["metadata"].get("ownerReferences") or time.monotonic() > deadline:
                    self._delete_part(leftover)
                    break
                # It has no job yet: another launcher may be about to create the job.
                time.sleep(_LOOK_S)
