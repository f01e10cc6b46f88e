"""The trainer's error tree: every error knows its exit code and says what, where and what to do.

TrainerError              1  training failed
├── UsageError            2  options, environment, profile, rank table or data are wrong: nothing was started
│   └── RuntimeUnusable   2  a device's runtime cannot be used here; the cause has its own words
├── ConflictError         6  the output folder belongs to another run
└── StoppedError         75  told to stop when there was nothing to save: start it again

An error is raised where the fact is known and printed once, as one line, by `trainer.cli` or the worker.
"""

from typing import ClassVar

RESUMABLE = 75
"""Exit code of a run that was told to stop and can go on later."""


class TrainerError(Exception):
    """Training cannot go on. `str(error)` is one line: what is wrong, where, and the next step."""

    exit_code: ClassVar[int] = 1


class UsageError(TrainerError):
    """What the user gave cannot be used; nothing has been started or overwritten."""

    exit_code: ClassVar[int] = 2


class RuntimeUnusable(UsageError):  # noqa: N818  # it says what is so, as the launcher's JobFailed
    """A device's runtime cannot be used. What it said itself is the cause, and is worth reading."""


class ConflictError(TrainerError):
    """The output folder already holds a run."""

    exit_code: ClassVar[int] = 6


class StoppedError(TrainerError):
    """Told to stop before training began; the run can be started again."""

    exit_code: ClassVar[int] = RESUMABLE
