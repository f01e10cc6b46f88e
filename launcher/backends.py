"""Where a job is: on this machine or on a cluster. For commands that read and stop jobs.

This machine is asked first, which costs nothing, and then every kind of job that the cluster serves.
"""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from launcher import PROGRAM
from launcher.cluster.jobs import ClusterJobs
from launcher.errors import ApiError, LauncherError, NotFoundError
from launcher.jobs import KIND_NAMES, BackendName, JobRef, Jobs, JobState, Phase
from launcher.kube.access import ClusterAccess, is_configured
from launcher.local.jobs import LocalJobs
from launcher.output.progress import JobProgress

MOST_PROGRESS = 32
"""Running jobs whose progress a list reads, the latest ones: each costs a request, and there can be hundreds."""
PROGRESS_S = 3.0
"""How long a list waits for the progress of all of them: a node that hangs answers after a minute, or never."""
_READERS = 8
"""Requests at a time; as many connections are kept open."""


def find_job(name: str, backend: BackendName, access: ClusterAccess) -> tuple[Jobs, JobRef]:
    """Return the job called `name`, wherever `backend` allows it to be.

    Raises:
        NotFoundError: there is no such job.
        UnreachableError: it is not on this machine, and the cluster does not answer.
    """
    missing: dict[str, NotFoundError] = {}
    hidden: ApiError | None = None
    for jobs in _readable_jobs(backend, access):
        ref = JobRef(jobs.name, name)
        try:
            jobs.check_exists(ref)
        except NotFoundError as error:
            missing.setdefault(jobs.place, error)
        except ApiError as error:
            hidden = hidden or _check_skippable(error, backend)
        else:
            return jobs, ref
    if hidden is not None:
        raise hidden
    if len(missing) == 1:
        raise missing.popitem()[1]
    raise NotFoundError(f"there is no job `{name}` in {' or in '.join(missing)}; see `{PROGRAM} list`")


@dataclass(frozen=True)
class Listing:
    """All jobs that could be listed, oldest first, and why others could not."""

    jobs: Sequence[tuple[Jobs, JobState, JobProgress]]
    problem: LauncherError | None = None

    def with_progress(self) -> "Listing":
        """Return the jobs with the progress of running ones that the list itself does not tell."""
        unknown = [(jobs, state) for jobs, state, progress in self.jobs if not progress.has_begun]
        read = quick_progress(unknown[::-1])
        return replace(self, jobs=[(jobs, state, read.get(state.ref, old)) for jobs, state, old in self.jobs])


def list_jobs(backend: BackendName, access: ClusterAccess) -> Listing:
    """List the jobs of all backends that `backend` allows.

    Raises:
        LauncherError: the backend that the user named cannot be asked.
    """
    listed: list[tuple[Jobs, JobState, JobProgress]] = []
    problem: LauncherError | None = None
    try:
        for jobs in _readable_jobs(backend, access):
            states, hidden = _list_readable(jobs, backend)
            listed += [(jobs, state, progress) for state, progress in states]
            problem = problem or hidden
    except LauncherError as error:
        if backend != "auto":
            raise
        problem = problem or error
    return Listing(sorted(listed, key=lambda job: (job[1].created or 0, job[1].ref.name)), problem)


def quick_progress(jobs: Sequence[tuple[Jobs, JobState]]) -> Mapping[JobRef, JobProgress]:
    """Return the progress of the first running jobs, as far as it can be read at once; several at a time."""
    running = [(own, state) for own, state in jobs if state.phase is Phase.RUNNING][:MOST_PROGRESS]
    read: dict[JobRef, JobProgress] = {}
    deadline = time.monotonic() + PROGRESS_S
    remaining = iter(running)

    def read_on() -> None:
        for own, state in remaining:
            if time.monotonic() > deadline:
                return
            with suppress(NotFoundError):  # it was deleted meanwhile
                read[state.ref] = own.quick_progress(state)

    # A thread that still waits for an answer does not keep the process alive.
    threads = [threading.Thread(target=read_on, daemon=True) for _ in range(min(_READERS, len(running)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return dict(read)


def _list_readable(jobs: Jobs, backend: BackendName) -> tuple[list[tuple[JobState, JobProgress]], ApiError | None]:
    try:
        return jobs.list(), None
    except ApiError as error:
        return [], _check_skippable(error, backend)


def _check_skippable(error: ApiError, backend: BackendName) -> ApiError:
    """Return the error if other kinds can be asked: a user may have rights on one kind of job only.

    Raises:
        ApiError: the user named this kind, or the error is not about rights.
    """
    if backend != "auto" or not error.of_rights:
        raise error
    return error


def _readable_jobs(backend: BackendName, access: ClusterAccess) -> Iterator[Jobs]:
    if backend in KIND_NAMES:
        yield ClusterJobs.at(backend, access)
        return
    if backend != "auto" or access == ClusterAccess():
        yield LocalJobs()
    if backend == "auto" and is_configured(access):
        yield from (jobs for name in KIND_NAMES if (jobs := ClusterJobs.at(name, access)).served())
