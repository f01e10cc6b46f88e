"""Where a job is: on this machine or on a cluster. For commands that read and stop jobs.

This machine is asked first, which costs nothing, and then every kind of job that the cluster serves.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from launcher import PROGRAM
from launcher.cluster.jobs import ClusterJobs
from launcher.errors import ApiError, LauncherError, NotFoundError
from launcher.jobs import KIND_NAMES, BackendName, JobRef, Jobs, JobState
from launcher.kube.access import ClusterAccess, is_configured
from launcher.local.jobs import LocalJobs
from launcher.output.progress import JobProgress


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

    jobs: list[tuple[Jobs, JobState, JobProgress]]
    problem: LauncherError | None = None


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
