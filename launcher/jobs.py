"""The interface through which every command reads and stops jobs, wherever they run.

Commands know jobs by a `JobRef` and a `JobState`; they know no pids, pods or folders. `launcher.backends` finds the
implementation, `launcher.local` or `launcher.cluster`; `launcher.submitters` starts jobs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, get_args

from launcher.errors import ExitCode, NotFoundError
from launcher.recorded_spec import known_spec
from trainer.shared.runs import TRAINING

if TYPE_CHECKING:
    from launcher.output.progress import JobProgress

KindName = Literal["volcano", "batch"]
"""Job kinds on a cluster: modules in `launcher.kinds`, the preferred one first. Every cluster serves the last one."""
BackendName = Literal["auto", "local", KindName]
KIND_NAMES: tuple[KindName, ...] = get_args(KindName)
BACKEND_NAMES: tuple[BackendName, ...] = get_args(BackendName)
DEFAULT_QUEUE = "default"
"""The queue of a job whose user names none: Volcano's; Kueue puts a job there only if a LocalQueue has this name."""
UNSUPPORTED = {
    "ascendjob": "not supported, as too little is known of how AscendJobs are stopped, retried and ended "
    "(docs/ascend.md); use volcano: MindCluster writes rank tables for Volcano jobs too"
}
"""Backends that a user may expect, each with the reason why it is missing."""


class Phase(str, Enum):
    """The phase of a job's life."""

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
        """Whether nothing more will happen."""
        return self not in (Phase.PENDING, Phase.SUSPENDED, Phase.RUNNING)

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of `wait` and of a followed `submit` for a job that ended in this phase."""
        if self is Phase.SUCCEEDED:
            return ExitCode.OK
        return ExitCode.CANCELLED if self in (Phase.CANCELLED, Phase.RESUMABLE) else ExitCode.JOB_FAILED


@dataclass(frozen=True)
class JobRef:
    """Names a job."""

    backend: str
    name: str


@dataclass(frozen=True)
class JobState:
    """The state of a job. Times are seconds since 1970.

    Attributes:
        spec: the recorded JobSpec as plain values, so that a record of an older version can still be shown.
        output: its folder, as the pod or this machine sees it.
        files: where a person finds that folder; nothing if it is not there yet.
        attempt: how often it was submitted.
        restarts: how often the cluster has tried this attempt again.
        devices: how many devices it uses, if its settings leave the number to the trainer.
        lost_node: what is known of a pod whose node does not answer, and the next step; empty without one.
        command, console: on this machine, the trainer's command line and the file with its output.
        details: the backend's own facts (process ids, pods, …) for `status --json`.
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
    devices: int | None = None
    lost_node: str = ""
    command: Sequence[str] = ()
    console: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def resumable(self) -> bool:
        """Whether it ended before it was done, and left a state from which it can go on."""
        unfinished = self.phase.ended and self.phase is not Phase.SUCCEEDED
        return unfinished and bool(self.files) and self.setting("mode") in TRAINING

    def setting(self, name: str) -> Any:
        """Return one of the trainer's settings; None if the record does not have it, or if it came with weights."""
        return known_spec(self.spec).get("train", {}).get(name)

    @property
    def npus(self) -> int | None:
        """The number of devices on each node; None if unknown."""
        return self.setting("npus") or self.devices

    def took_s(self, now: float) -> float | None:
        """Return the seconds from the start to the end, or to now."""
        return None if self.started is None else (self.ended or now) - self.started


@dataclass(frozen=True)
class LogBlock:
    r"""Part of a job's log: whole lines, each ending in `\n`. After the end of a job the last line can lack its end.

    An empty block says that all lines that existed when the reading began have been delivered.

    Attributes:
        stream: the source of these lines; the lines of each stream are numbered from 1.
        timestamps: returns the time of each line, as the cluster knows it; None if it is unknown.
    """

    data: bytes
    stream: str = ""
    timestamps: Callable[[], Sequence[str]] | None = None


@dataclass(frozen=True)
class LogLoss:
    """Lines that are or may be lost for good; their count is unknown.

    Attributes:
        reason: why, for the user.
        first_ns, last_ns: the lost lines were written between these moments, both inclusive, in nanoseconds since 1970
            by the node's clock. None is an open end.
        source: the pod, or another source of the lines.
        at_end: no line of this source comes after them.
    """

    reason: str
    first_ns: int | None = None
    last_ns: int | None = None
    source: str = ""
    at_end: bool = False

    def __str__(self) -> str:
        """`pod a: lines between 10:15:02.500Z and 10:15:04.000Z are lost: the log was rotated`."""
        first, last = (None if ns is None else _clock_time(ns) for ns in (self.first_ns, self.last_ns))
        if first and last:
            extent = f"lines between {first} and {last} are lost"
        else:
            extent = f"lines after {first} may be lost" if first else "lines may be lost"
        return f"{self.source}: {extent}: {self.reason}"


def _clock_time(nanoseconds: int) -> str:
    return datetime.fromtimestamp(nanoseconds / 1e9, timezone.utc).strftime("%H:%M:%S.%f")[:-3] + "Z"


@dataclass(frozen=True)
class Notice:
    """A line for the reader that is not part of the log, such as the reason why the job waits."""

    text: str


@dataclass(frozen=True)
class Ended:
    """How the job ended. It comes with the log, because the job may be deleted before the next question."""

    state: JobState


@dataclass(frozen=True)
class JobEvent:
    """Something that happened to a job, as a line for the user."""

    time: float
    text: str


@dataclass(frozen=True)
class Submitted:
    """The result of a submit.

    Attributes:
        notes: what the user should know of it.
        existed: whether the job was already running.
    """

    ref: JobRef
    notes: Sequence[str] = ()
    existed: bool = False
    attempt: int = 1


class PreflightFinding(NamedTuple):
    """The result of one check.

    Attributes:
        about: the thing that was checked.
        state: `missing` if the job cannot start; `later` if a started job waits for it, like a node that an autoscaler
            adds on demand; `unknown` if it cannot be checked, for example because the user has no right to see it.
        text: one line; for a fault: what is wrong, where, and the next step.
    """

    about: str
    state: Literal["ok", "missing", "later", "unknown"]
    text: str


@dataclass(frozen=True)
class Cause:
    """A cause why a job waits, or why it failed.

    Attributes:
        rule: the name of the rule that found it, for programs.
        text: one sentence.
        evidence: the words of the cluster or of the log that prove it.
        steps: what the user can do next; the launcher's own commands begin with its name.
    """

    rule: str
    text: str
    evidence: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Explanation:
    """Why a job waits or failed, the most likely cause first; no cause if nothing is wrong, or nothing is known.

    Attributes:
        hidden: what the user has no right to see.
    """

    state: JobState
    causes: Sequence[Cause]
    hidden: Sequence[str] = ()


NOT_CHECKED = "not checked: "
"""Begins the text of each finding whose state is `unknown`."""

LogItem = LogBlock | LogLoss | Notice | Explanation | Ended
"""A piece of a job's log."""


class Channel(Protocol):
    """Two streams of bytes to and from a program next to a run's files.

    Attributes:
        source: says in messages where it leads to.
    """

    source: str

    def send(self, data: bytes) -> None:
        """Send bytes to the program.

        Raises:
            UnreachableError: the program has ended, or the connection was cut; `receive` raises it too.
        """

    def receive(self) -> bytes:
        """Return the next bytes of the program; nothing after its end."""


class Jobs(Protocol):
    """The jobs of one backend: find, read, stop.

    Every method that takes a ref raises NotFoundError for an unknown job. An implementation imports neither pydantic
    nor jinja2, so that `list` and `logs` start quickly; `launcher.submitters` has the half that starts jobs.

    Attributes:
        name: the backend, as after `--backend`.
        poll_s: seconds between two questions that are no burden.
    """

    name: str
    poll_s: float

    @property
    def place(self) -> str:
        """This machine, or the cluster and the namespace, for messages."""

    @property
    def address(self) -> str:
        """The same place, as no other configuration file renames it."""

    def check_exists(self, ref: JobRef) -> None:
        """Do nothing but raise NotFoundError for an unknown job: this costs less than its state."""

    def get(self, ref: JobRef) -> JobState:
        """Return the job's state."""

    def logs(
        self, ref: JobRef, *, follow: bool = False, since_s: float | None = None, attempt: int | None = None
    ) -> "Iterator[LogItem]":
        """Yield the job's log.

        Args:
            follow: yield blocks until the job has ended; how it ended may come last.
            since_s: yield about the lines of the last seconds only.
            attempt: the attempt to read; the latest if None.
        """

    def get_with_events(self, ref: JobRef) -> tuple[JobState, list[JobEvent]]:
        """Return the job's state, and what happened to it, oldest first."""

    def progress(self, state: JobState) -> "JobProgress":
        """Return the progress of the job that is in this state, read from the end of its log."""

    def quick_progress(self, state: JobState) -> "JobProgress":
        """Return the progress of a running job for a list: of the job, perhaps not of each rank."""

    def explain(self, ref: JobRef) -> Explanation:
        """Return why the job waits or failed."""

    def cancel(self, ref: JobRef, *, on_asked: Callable[[], None] = lambda: None) -> None:
        """Ask the job to save and stop, and return when it has ended. An ended job stays as it is.

        Args:
            on_asked: called when the job has the request: from then on it stops without this program.
        """

    def recover(self, ref: JobRef, *, on_note: Callable[[str], None]) -> None:
        """Delete the job's pods that cannot end because their nodes are silent, so that their successors can start.

        Args:
            on_note: called with lines for the user.

        Raises:
            ConflictError: no pod waits for a silent node.
            RequestError: the job runs on this machine.
        """

    def objects(self, ref: JobRef) -> Mapping[str, Any]:
        """Return what is recorded of the job, as plain values by their names: objects of the cluster, or records."""

    def known_secrets(self) -> Sequence[str]:
        """Return the user's own login, so that it can be hidden in texts."""

    def open_files(
        self, state: JobState, *, on_note: Callable[[str], None], live: bool = False
    ) -> AbstractContextManager[Channel]:
        """Return a way to the files in the job's output folder, which `launcher.results.file_server` serves there.

        Args:
            on_note: called with lines for the user.
            live: go where the job runs, and not where its files only can be read.

        Raises:
            NotFoundError: the job has no output folder.
            ConflictError: the job does not run, but must.
            LauncherError: the folder cannot be read from here.
        """

    def delete(self, ref: JobRef) -> None:
        """Forget an ended job. Its output folder stays.

        Raises:
            ConflictError: the job has not ended.
        """

    def list(self) -> "list[tuple[JobState, JobProgress]]":
        """Return all jobs, oldest first, each with the progress that costs no further request."""


def find_state(jobs: Jobs, name: str) -> JobState | None:
    """Return the state of the job of this name; None if there is no such job."""
    try:
        return jobs.get(JobRef(jobs.name, name))
    except NotFoundError:
        return None


def resumable_names(jobs: Jobs) -> str:
    """Return the latest jobs that can be continued, for a user who named no job; empty without one."""
    names = [f"{state.ref.name} ({state.phase.value})" for state, _ in jobs.list() if state.resumable]
    return f"it can be {', '.join(names[-8:])}" if names else ""
