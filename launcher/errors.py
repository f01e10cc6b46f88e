"""The launcher's errors: each carries its exit code and says what is wrong, where, and the next step.

They exist so that a script can tell a failed job from a mistyped option by the exit code alone.

LauncherError                 1
├── JobFailed                 1  the job ended without success
├── RequestError              2  what was asked for cannot be used; nothing was started
├── UnreachableError          3  the cluster cannot be reached, or does not let us in
├── NotFoundError             4  no such job
├── PreflightError            5  the cluster is not ready for this job; nothing was created
├── ConflictError             6  a name or a state stands in the way
├── WaitTimedOut            124  the time given to `wait` or `cancel` is over; the job goes on
├── JobStopped              125  the job was cancelled or preempted
└── Detached                130  Ctrl-C or SIGTERM ended the launcher, never the job

Settings are refused by `trainer.shared.errors.UsageError`, which has the same code 2.
"""

from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """What `python -m launcher` ends with."""

    OK = 0
    JOB_FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    NOT_FOUND = 4
    PREFLIGHT_FAILED = 5
    CONFLICT = 6
    TIMED_OUT = 124
    CANCELLED = 125
    INTERRUPTED = 130
    BROKEN_PIPE = 141


MEANINGS = {
    ExitCode.OK: "done; for submit and wait: the job succeeded",
    ExitCode.JOB_FAILED: "the job failed",
    ExitCode.USAGE: "an option or a setting cannot be used; nothing was started",
    ExitCode.UNREACHABLE: "the cluster cannot be reached, or does not let you in",
    ExitCode.NOT_FOUND: "no such job",
    ExitCode.PREFLIGHT_FAILED: "a check before the start failed",
    ExitCode.CONFLICT: "the name is taken, or the job's state stands in the way",
    ExitCode.TIMED_OUT: "the wait timed out; the job goes on",
    ExitCode.CANCELLED: "the job was cancelled or preempted",
    ExitCode.INTERRUPTED: "interrupted; the job goes on",
    ExitCode.BROKEN_PIPE: "nobody reads the output any more; the job goes on",
}


class LauncherError(Exception):
    """Something cannot be done. `str(error)` is one line: what is wrong, where, and the next step."""

    exit_code: ClassVar[ExitCode] = ExitCode.JOB_FAILED
    transient: bool = False
    """Whether the same may succeed a moment later."""


class JobFailed(LauncherError):  # noqa: N818  # named after the job's outcome, which is no error of the launcher
    """The job ended without success; the message is the first cause."""


class RequestError(LauncherError):
    """What was asked for cannot be used; nothing was started."""

    exit_code = ExitCode.USAGE


class UnreachableError(LauncherError):
    """The cluster gives no answer, or none to us."""

    exit_code = ExitCode.UNREACHABLE
    transient = True


class PreflightError(LauncherError):
    """The cluster lacks something that the job needs; nothing was created."""

    exit_code = ExitCode.PREFLIGHT_FAILED


class NotFoundError(LauncherError):
    """No job has this name."""

    exit_code = ExitCode.NOT_FOUND


class ConflictError(LauncherError):
    """The name is taken, or the job is not in a state that allows this."""

    exit_code = ExitCode.CONFLICT


class WaitTimedOut(LauncherError):  # noqa: N818  # an outcome, not an error
    """The job had not ended when the time was over."""

    exit_code = ExitCode.TIMED_OUT


class JobStopped(LauncherError):  # noqa: N818  # an outcome, not an error
    """The job was cancelled or preempted."""

    exit_code = ExitCode.CANCELLED


class Detached(LauncherError):  # noqa: N818  # an outcome, not an error
    """The launcher was interrupted while it followed a job; the job goes on."""

    exit_code = ExitCode.INTERRUPTED
