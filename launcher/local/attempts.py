"""The attempts of one local job: each has its records and its console. An ended attempt moves to `attempts/<number>/`.

A continued job has the same name and output folder. The log and the end of an earlier attempt stay readable. The lines
of two attempts never mix, as each attempt numbers its lines from 1.
"""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from launcher.errors import LauncherError, NotFoundError
from launcher.local import records

_ATTEMPTS = "attempts"


def attempt_of(job: Mapping[str, Any]) -> int:
    """Return which attempt a job's record describes."""
    return int(job.get("attempt", 1))


def attempt_folder(folder: Path, number: int | None) -> Path:
    """Return the folder with the records of an attempt; the latest attempt without a `number`.

    Raises:
        NotFoundError: the job has no such attempt.
    """
    latest = attempt_of(records.read_record(folder / records.JOB) or {})
    if number is None or number == latest:
        return folder
    earlier = folder / _ATTEMPTS / str(number)
    if not earlier.is_dir():
        have = "attempt 1 only" if latest == 1 else f"attempts 1 to {latest}"
        raise NotFoundError(f"job {folder.name} has {have}: there is no attempt {number}")
    return earlier


def earlier_attempts(folder: Path) -> list[Path]:
    """Return the folders of the attempts before the latest one, oldest first."""
    attempts = folder / _ATTEMPTS
    return sorted(attempts.iterdir(), key=lambda path: int(path.name)) if attempts.is_dir() else []


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Let one launcher at a time decide whether a job has ended and may be continued."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # a file system without locks: the trainer's own lock of the run still holds
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def begin_next(folder: Path, job: Mapping[str, Any]) -> None:
    """Move the ended attempt's records to its own folder, and write the record of the next attempt.

    The exit record moves last: until then a reader sees an ended job, never a lost one.

    Raises:
        LauncherError: the disk is full, or the user has no right to write.
    """
    old = records.read_record(folder / records.JOB) or {}
    number = attempt_of(old)
    earlier = folder / _ATTEMPTS / str(number)
    try:
        earlier.mkdir(parents=True, exist_ok=True)
        for name in (records.CANCEL, records.PROCESSES, records.CLOCK, records.CONSOLE):
            _move(folder / name, earlier)
        if old:
            records.write_record(earlier / records.JOB, "LocalJob", old)
        records.write_record(folder / records.JOB, "LocalJob", {**job, "attempt": number + 1})
        _move(folder / records.EXIT, earlier)
    except OSError as error:
        raise LauncherError(f"{earlier}: cannot be written: {error.strerror}; free or change XDG_STATE_HOME") from error


def _move(path: Path, folder: Path) -> None:
    if path.exists():
        path.rename(folder / path.name)
