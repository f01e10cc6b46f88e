"""The one interface through which every command reaches a job, wherever it runs.

Commands know jobs by a `JobRef` and a `JobState`; they know no pids, pods or folders. A backend is imported when a
command needs it, so that `--help` pays for none.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from launcher.errors import ExitCode, NotFoundError
from launcher.progress import Progress

if TYPE_CHECKING:
    from launcher.spec import JobSpec  # pydantic: commands that only read do not pay for it


_TRAINING = ("full", "finetune")


class Phase(str, Enum):
    """Where a job is in its life."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    CANCELLED = "Cancelled"
    RESUMABLE = "Resumable"
    LOST = "Lost"

    @property
    def ended(self) -> bool:
        """Nothing more will happen."""
        return self not in (Phase.PENDING, Phase.RUNNING)

    @property
    def exit_code(self) -> ExitCode:
        """What `wait` and a followed `submit` end with once a job is in this phase."""
        if self is Phase.SUCCEEDED:
            return ExitCode.OK
        return ExitCode.CANCELLED if self in (Phase.CANCELLED, Phase.RESUMABLE) else ExitCode.JOB_FAILED


@dataclass(frozen=True)
class JobRef:
    """Which job is meant."""

    backend: str
    name: str


@dataclass(frozen=True)
class JobState:
    """What is known of a job now. Times are seconds since 1970.

    `spec` is the recorded JobSpec as plain values, so that a record of an older version can still be shown.
    `details` are the backend's own facts (process ids, …) for `status`.
    """

    ref: JobRef
    phase: Phase
    reason: str = ""
    created: float | None = None
    started: float | None = None
    ended: float | None = None
    spec: Mapping[str, Any] = field(default_factory=dict)
    output: Path | None = None
    attempt: int = 1
    details: Mapping[str, Any] = field(default_factory=dict)

    def setting(self, name: str) -> Any:
        """One of the trainer's settings, or None if the record does not have it."""
        return self.spec.get("train", {}).get(name)

    @property
    def resumable(self) -> bool:
        """It ended before it was done, and left a folder in which it can go on."""
        begun = self.output is not None and self.output.exists()
        return begun and self.phase.ended and self.phase is not Phase.SUCCEEDED and self.setting("mode") in _TRAINING

    def took_s(self, now: float) -> float | None:
        """Seconds from the start to the end, or to now."""
        return None if self.started is None else (self.ended or now) - self.started


@dataclass(frozen=True)
class JobEvent:
    """Something that happened to a job, for a person to read."""

    time: float
    text: str


class Backend(Protocol):
    """Runs jobs. Every method that takes a ref raises NotFoundError for a job that it does not know."""

    name: str

    def submit(self, spec: "JobSpec") -> JobRef:
        """Start a job, or the next attempt of an ended one if the spec resumes; it outlives the launcher.

        Raises:
            RequestError: it cannot run here; nothing was created.
            ConflictError: the name is taken, or the job that is to be continued still runs.
        """

    def get(self, ref: JobRef) -> JobState:
        """What is known of the job now."""

    def progress(self, ref: JobRef) -> Progress:
        """The job's latest news, read from the end of its log."""

    def events(self, ref: JobRef) -> list[JobEvent]:
        """What happened to the job, oldest first."""

    def logs(
        self, ref: JobRef, *, follow: bool = False, since_s: float | None = None, attempt: int | None = None
    ) -> Iterator[bytes]:
        r"""Blocks of whole lines, each ending in `\n` (but for a last unfinished line of an ended job).

        An empty block says that all that was written so far has been delivered. With `follow`, blocks come until
        the job has ended. With `since_s`, only about the lines of the last so many seconds come.
        Without `attempt`, the lines are the latest attempt's.
        """

    def cancel(self, ref: JobRef) -> None:
        """Ask the job to save and stop, and return when it has ended. An ended job is left as it is."""

    def delete(self, ref: JobRef) -> None:
        """Forget an ended job. Its output folder stays.

        Raises:
            ConflictError: it has not ended.
        """

    def list(self) -> "list[JobState]":
        """All jobs, oldest first."""


def open_backend(name: str) -> Backend:
    """The backend called `name`; `auto` is this machine as long as no cluster backend exists."""
    from launcher.backends.local import LocalBackend  # noqa: PLC0415  # imported when needed, see above

    if name not in ("auto", "local"):
        raise AssertionError(f"the command line let backend {name} pass")
    return LocalBackend()


def exists(backend: Backend, name: str) -> bool:
    """Whether the backend knows a job of this name."""
    try:
        backend.get(JobRef(backend.name, name))
    except NotFoundError:
        return False
    return True
