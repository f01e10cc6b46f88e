"""The one interface through which every command reaches a job, wherever it runs.

Commands know jobs by a `JobRef` and a `JobState`; they know no pids, pods or folders. A backend is imported when a
command needs it, so that `--help` pays for none.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from launcher.errors import ExitCode, NotFoundError

if TYPE_CHECKING:
    from launcher.output.progress import Progress
    from launcher.settings.spec import JobSpec  # pydantic: commands that only read do not pay for it


UNSUPPORTED = {
    "ascendjob": "not supported, as too little is known of how AscendJobs are stopped, retried and ended "
    "(docs/ascend.md); use volcano, for whose jobs MindCluster writes rank tables, too"
}
"""Backends that somebody may expect, and why there are none."""
TRAINING = ("full", "finetune")
"""The modes that can be continued."""


class Phase(str, Enum):
    """Where a job is in its life."""

    PENDING = "Pending"
    SUSPENDED = "Suspended"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    CANCELLED = "Cancelled"
    RESUMABLE = "Resumable"
    LOST = "Lost"

    @property
    def ended(self) -> bool:
        """Nothing more will happen."""
        return self not in (Phase.PENDING, Phase.SUSPENDED, Phase.RUNNING)

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

    Attributes:
        spec: the recorded JobSpec as plain values, so that a record of an older version can still be shown.
        output: its folder, as the pod or this machine sees it.
        files: where a person finds that folder; nothing if it is not there yet.
        attempt: how often it was submitted.
        restarts: how often the cluster has tried this attempt again.
        resumable: it ended before it was done, and left a state from which it can go on.
        details: the backend's own facts (process ids, pods, …) for `status`.
    """

    ref: JobRef
    phase: Phase
    reason: str = ""
    created: float | None = None
    started: float | None = None
    ended: float | None = None
    spec: Mapping[str, Any] = field(default_factory=dict)
    output: Path | None = None
    files: str = ""
    attempt: int = 1
    restarts: int = 0
    resumable: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)

    def setting(self, name: str) -> Any:
        """One of the trainer's settings, or None if the record does not have it."""
        return self.spec.get("train", {}).get(name)

    def took_s(self, now: float) -> float | None:
        """Seconds from the start to the end, or to now."""
        return None if self.started is None else (self.ended or now) - self.started


@dataclass(frozen=True)
class Block:
    r"""Part of a job's log: whole lines, each ending in `\n` (but for a last unfinished line of what has ended).

    An empty block says that all that was written so far has been delivered.

    Attributes:
        stream: whose lines these are; those of another stream are numbered from 1 again.
        stamps: gives the time at which each line was written, as the cluster has it; None if nobody knows.
    """

    data: bytes
    stream: str = ""
    stamps: Callable[[], Sequence[str]] | None = None


@dataclass(frozen=True)
class Notice:
    """What a reader of the log should know beside its lines: why the job waits, or which lines are lost."""

    text: str


@dataclass(frozen=True)
class Loss(Notice):
    """Lines that nobody has any more, and that no number need have told of."""


@dataclass(frozen=True)
class Ended:
    """How the job ended, as it was seen: it may be gone before anybody asks again."""

    state: JobState


@dataclass(frozen=True)
class JobEvent:
    """Something that happened to a job, for a person to read."""

    time: float
    text: str


@dataclass(frozen=True)
class Submitted:
    """What became of a submit.

    Attributes:
        note: what a person should know of it.
        existed: the job was there already.
    """

    ref: JobRef
    note: str = ""
    existed: bool = False
    attempt: int = 1


LogItem = Block | Notice | Ended
"""What a job's log is made of."""


def known(backend: "Backend", name: str) -> JobState | None:
    """What the backend knows of the job of this name; None if there is none."""
    try:
        return backend.get(JobRef(backend.name, name))
    except NotFoundError:
        return None


class Backend(Protocol):
    """Runs jobs. Every method that takes a ref raises NotFoundError for a job that it does not know."""

    name: str
    poll_s: float
    """How often it may be asked without a burden."""

    @property
    def where(self) -> str:
        """This machine, or the cluster and the namespace, for messages."""

    def submit(self, spec: "JobSpec", *, again: bool = False) -> "Submitted":
        """Start a job, or the next attempt of an ended one if the spec resumes; it outlives the launcher.

        Args:
            again: start the same job once more, under another name, though it has ended.

        Raises:
            RequestError: it cannot run here; nothing was created.
            ConflictError: the name is taken, or the job that is to be continued still runs.
        """

    def get(self, ref: JobRef) -> JobState:
        """What is known of the job now."""

    def progress(self, ref: JobRef) -> "Progress":
        """The job's latest news, read from the end of its log."""

    def glance(self, state: JobState) -> "Progress":
        """As much of a job's progress as can be had at once, for a list of many."""

    def events(self, ref: JobRef) -> list[JobEvent]:
        """What happened to the job, oldest first."""

    def logs(
        self, ref: JobRef, *, follow: bool = False, since_s: float | None = None, attempt: int | None = None
    ) -> "Iterator[LogItem]":
        """What the job has said so far.

        With `follow`, blocks come until the job has ended, and how it ended may come last. With `since_s`, only about
        the lines of the last so many seconds come. Without `attempt`, the lines are the latest attempt's.
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
