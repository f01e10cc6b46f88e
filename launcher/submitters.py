"""The half of a backend that starts jobs, and the choice of the backend for a new job.

It needs pydantic and jinja2. Commands that only read jobs use `launcher.backends` and never import this module.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Protocol

from launcher.cluster.jobs import ClusterJobs
from launcher.cluster.submitter import ClusterSubmitter
from launcher.errors import UnreachableError
from launcher.jobs import KIND_NAMES, Jobs, PreflightFinding, Submitted
from launcher.kube.access import ClusterAccess, is_configured
from launcher.local.jobs import LocalJobs
from launcher.local.submitter import LocalSubmitter
from launcher.settings.layers import Defaults, Earlier, Settings
from launcher.settings.options import JobOptions
from launcher.settings.spec import JobSpec


class Submitter(Protocol):
    """Starts jobs on one backend."""

    @property
    def jobs(self) -> Jobs:
        """The reading half of the same backend."""

    def defaults(self) -> Defaults | None:
        """Return the settings that an administrator published for every job here; None without such settings."""

    def earlier(self, settings: Settings) -> tuple[str, Earlier]:
        """Return the name of the job that `--resume` continues or begins, and what is known of its run.

        Raises:
            RequestError: the user names no job, or a run that no job can continue.
            ConflictError: the job of this name has another run.
        """

    def build(self, settings: Settings, *, now: datetime, again: bool = False) -> JobSpec:
        """Return the job's spec.

        Args:
            again: choose a new name if the same job has ended.

        Raises:
            RequestError: the job cannot run here.
        """

    def check(self, spec: JobSpec, *, ask_server: bool) -> tuple[str, list[str]]:
        """Judge a spec without starting it; return the verdict and warnings.

        Args:
            ask_server: have the cluster judge it too.

        Raises:
            LauncherError: the job could not be started.
        """

    def submit(self, spec: JobSpec) -> Submitted:
        """Start a job, or the next attempt of an ended one if the spec continues it; it outlives the launcher.

        Raises:
            RequestError: it cannot run here; nothing was created.
            ConflictError: the name is taken, or the job to continue still runs.
        """

    def examine(self, settings: Settings) -> Iterator[PreflightFinding]:
        """Yield what is ready for such a job, what is missing, and what cannot be checked.

        Raises:
            LauncherError: the backend does not answer, or cannot have such a job.
        """


def choose_submitter(options: JobOptions) -> tuple[Submitter, str]:
    """Return the submitter for a new job, and for `auto` why it was chosen.

    Auto prefers a configured cluster, and there the first kind that it serves.

    Raises:
        UnreachableError: a cluster is configured and does not answer; this machine does not stand in for it.
    """
    access = ClusterAccess(options.kubeconfig, options.context, options.namespace)
    if options.backend in KIND_NAMES:
        return ClusterSubmitter(ClusterJobs.at(options.backend, access)), ""
    if options.backend != "auto":
        return LocalSubmitter(LocalJobs()), ""
    if not is_configured(access):
        reason = "no cluster is configured: the job runs on this machine (--backend local)"
        return LocalSubmitter(LocalJobs()), reason
    try:
        return _best_kind(access)
    except UnreachableError as error:
        raise UnreachableError(f"{error}, or run on this machine with --backend local") from error


def _best_kind(access: ClusterAccess) -> tuple[Submitter, str]:
    missing = ""
    for name in KIND_NAMES[:-1]:
        jobs = ClusterJobs.at(name, access)
        if jobs.served():
            return ClusterSubmitter(jobs), f"{jobs.place} serves {jobs.kind.title} (--backend {name})"
        missing = missing or f"{jobs.place} has no {jobs.kind.title}"
    jobs = ClusterJobs.at(KIND_NAMES[-1], access)  # every cluster serves it
    return ClusterSubmitter(jobs), f"{missing} (--backend {jobs.name})"
