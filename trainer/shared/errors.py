"""The trainer's error tree: every error knows its exit code and says what is wrong, where, and what to do.

TrainerError                  1  training failed
├── BadImageError             1  an image cannot be decoded
├── CorruptionError           1  the ranks' states differ: a device computed or remembered something wrong
├── FolderTakenError          6  the output folder belongs to another run
├── NoRetryError              7  the same start would fail in the same way
│   └── DivergedError         7  the loss or the gradient was not finite in too many steps in a row
├── RefusedOptionError        1  a small run of `prove` did not start, because its device cannot do what an option asks
├── StoppedError             75  stopped when there was nothing to save: start the run again
└── UsageError                2  options, environment, profile, rank table or data are wrong: nothing was started
    ├── ConfigError           2  an option is wrong, alone or together with others
    ├── NotJsonError          2  a rank table's text is not JSON
    ├── NotReadyError         2  a rank table is not complete yet; the caller waits for it
    └── RuntimeUnusableError  2  a device's runtime cannot be used here; the cause has the runtime's own words

Each module raises an error where it learns the fact; `trainer.cli` or the worker prints it once, as one line.
"""

from typing import ClassVar

RESUMABLE = 75
"""Exit code of a run that was stopped and can be continued."""
NO_RETRY = 7
"""Exit code of a failure after which no kind of job tries again: a start would repeat it, or no retry is left."""

CRASHED = 70
"""Exit code of a worker that met an error which it does not know (EX_SOFTWARE); the trainer's own is then 1."""


class TrainerError(Exception):
    """Training cannot continue. `str(error)` is one line: what is wrong, where, and the next step."""

    exit_code: ClassVar[int] = 1
    documented: bool = False
    """Whether a JSON document on standard output says the same already."""

    def after_document(self, printed: bool) -> "TrainerError":
        """Return the error, raised after a command has printed a JSON document with the same facts, or has not."""
        self.documented = printed
        return self


class UsageError(TrainerError):
    """The user's input cannot be used; nothing has been started or overwritten."""

    exit_code: ClassVar[int] = 2


class RuntimeUnusableError(UsageError):
    """A device's runtime cannot be used. Its `__cause__` has the runtime's own words, which are worth reading."""


class FolderTakenError(TrainerError):
    """The output folder already holds a run, or another process works in it."""

    exit_code: ClassVar[int] = 6


class NoRetryError(TrainerError):
    """No kind of job may try again: the same start would fail in the same way, or the job's retries are used up."""

    exit_code: ClassVar[int] = NO_RETRY


class StoppedError(TrainerError):
    """The run was stopped before training began; it can be started again."""

    exit_code: ClassVar[int] = RESUMABLE
