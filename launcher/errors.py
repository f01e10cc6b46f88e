"""The launcher's errors: each carries its exit code and says what is wrong, where, and the next step.

They exist so that a script can tell a failed job from a mistyped option by the exit code only.

LauncherError                    74  a file cannot be read or written, or a process cannot be started
├── JobFailedError                1  the job ended without success
├── RequestError                  2  the request cannot be carried out; nothing was started
├── UnreachableError              3  the cluster cannot be reached, or does not let the user in
│   └── PodLogError               3  a container's log cannot be read (see launcher.podlogs.errors)
│       ├── ConnectionCutError    3  the connection was cut in the middle of an answer
│       │   └── SilentError       3  nothing came for a while
│       ├── LogRefusedError       3  the server answered with something else than a log
│       ├── NotConnectedError     3  no connection came about
│       ├── ReadStoppedError      3  the reader was told to stop
│       └── UntrustedError        3  one side does not accept the other's certificate
├── ApiError                      3  the API server refused a request
├── ChangedError                 74  a file was replaced, became shorter or cannot be read while it is copied
├── NotFoundError                 4  there is no such job, attempt, rank or device
├── PreflightError                5  the cluster is not ready for this job; nothing was created
├── ConflictError                 6  the name is taken, or the job's state does not allow this
│   └── EndedError                6  the same job has ended
├── WaitTimeoutError            124  the time given to `wait` or `cancel` is over; the job goes on
├── JobStoppedError             125  the job was cancelled or preempted
└── DetachedError               130  Ctrl-C or SIGTERM ended the launcher, never the job

`trainer.shared.errors.UsageError`, which refuses settings, has the same code 2.
"""

import sys
from enum import IntEnum
from types import TracebackType
from typing import ClassVar


class ExitCode(IntEnum):
    """The exit codes of `python -m launcher`."""

    OK = 0
    JOB_FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    NOT_FOUND = 4
    PREFLIGHT_FAILED = 5
    CONFLICT = 6
    INTERNAL = 70
    IO_ERROR = 74
    TIMED_OUT = 124
    CANCELLED = 125
    INTERRUPTED = 130
    BROKEN_PIPE = 141


MEANINGS = {
    ExitCode.OK: "done; for submit and wait: the job succeeded",
    ExitCode.JOB_FAILED: "the job failed",
    ExitCode.USAGE: "an option or a setting cannot be used; nothing was started",
    ExitCode.UNREACHABLE: "the cluster cannot be reached, or does not let you in",
    ExitCode.NOT_FOUND: "no such job, attempt, rank or device",
    ExitCode.PREFLIGHT_FAILED: "a check before the start failed",
    ExitCode.CONFLICT: "the name is taken, or the job's state stands in the way",
    ExitCode.INTERNAL: "a fault of this program, which is worth a report; a running job goes on",
    ExitCode.IO_ERROR: "a file or standard output cannot be read or written; a running job goes on",
    ExitCode.TIMED_OUT: "the wait timed out; the job goes on",
    ExitCode.CANCELLED: "the job was cancelled or preempted",
    ExitCode.INTERRUPTED: "interrupted; the job goes on",
    ExitCode.BROKEN_PIPE: "the reader of the output has ended; the job goes on",
}


def report_faults() -> None:
    """From now on, end with 70 if an error reaches the interpreter: Python itself ends with 1, as for a failed job."""

    def report(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        sys.__excepthook__(kind, error, traceback)
        sys.exit(ExitCode.INTERNAL)

    sys.excepthook = report


def is_transient_status(status: int) -> bool:
    """Return whether a request with this HTTP status may succeed later: the server is ill or too busy."""
    return status >= 500 or status == 429


class LauncherError(Exception):
    """The command cannot do its work. `str(error)` is one line: what is wrong, where, and the next step."""

    exit_code: ClassVar[ExitCode] = ExitCode.IO_ERROR
    transient: bool = False
    """Whether the same request may succeed a moment later."""
    documented: bool = False
    """Whether a JSON document on standard output says the same already."""

    def after_document(self, printed: bool) -> "LauncherError":
        """Return the error, raised after a command has printed a JSON document with the same facts, or has not."""
        self.documented = printed
        return self

    def with_hint(self, hint: str) -> "LauncherError":
        """Return an error of the same class and attributes whose message has one more next step."""
        error = type(self).__new__(type(self), f"{self}; {hint}")
        error.__dict__.update(self.__dict__)
        return error


class JobFailedError(LauncherError):
    """The job ended without success; the message is the first cause."""

    exit_code = ExitCode.JOB_FAILED


class RequestError(LauncherError):
    """The request cannot be carried out; nothing was started."""

    exit_code = ExitCode.USAGE


class UnreachableError(LauncherError):
    """The cluster gives no answer, or does not let the user in."""

    exit_code = ExitCode.UNREACHABLE
    transient = True


class ApiError(LauncherError):
    """The API server refused a request.

    Attributes:
        status: the HTTP status.
        of_rights: the server does not know the user, or the user lacks the right. Otherwise a 403 refuses the content.
    """

    exit_code = ExitCode.UNREACHABLE

    def __init__(self, message: str, *, status: int, of_rights: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.of_rights = of_rights
        self.transient = is_transient_status(status)


class ChangedError(LauncherError):
    """A file was replaced, became shorter or cannot be read while it is copied; others can be."""


class PreflightError(LauncherError):
    """The cluster lacks something that the job needs; nothing was created."""

    exit_code = ExitCode.PREFLIGHT_FAILED


class NotFoundError(LauncherError):
    """There is no such job, attempt, rank or device."""

    exit_code = ExitCode.NOT_FOUND


class ConflictError(LauncherError):
    """The name is taken, or the job's state does not allow this."""

    exit_code = ExitCode.CONFLICT


class EndedError(ConflictError):
    """The same job has ended: the message says how to start it again, and how to continue it."""


class WaitTimeoutError(LauncherError):
    """The time was over before the job ended."""

    exit_code = ExitCode.TIMED_OUT


class JobStoppedError(LauncherError):
    """The job was cancelled or preempted."""

    exit_code = ExitCode.CANCELLED


class DetachedError(LauncherError):
    """The launcher was interrupted while it followed a job; the job goes on."""

    exit_code = ExitCode.INTERRUPTED
