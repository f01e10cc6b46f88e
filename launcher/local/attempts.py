"""The attempts of one local job: each has its records and its console; an ended one's are kept in `attempts/<number>/`.

A job that is continued keeps its name and its output folder. What an earlier attempt said and how it ended stays
readable, and the lines of two attempts, which are numbered from 1 in each, never mix.
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
    """Which attempt a job's record describes."""
    return int(job.get("attempt", 1))


def attempt_folder(folder: Path, number: int | None) -> Path:
    """Where the records of an attempt are; of the latest if `number` is None.

    Raises:
        NotFoundError: there is no such attempt.
    """
    latest = attempt_of(records.read_record(folder / records.JOB) or {})
    if number is None or number == latest:
        return folder
    kept = folder / _ATTEMPTS / str(number)
    if not kept.is_dir():
        have = "attempt 1 only" if latest == 1 else f"attempts 1 to {latest}"
        raise NotFoundError(f"job {folder.name} has {have}: there is no attempt {number}")
    return kept


def earlier_attempts(folder: Path) -> list[Path]:
    """The folders of the attempts before the latest one, oldest first."""
    kept = folder / _ATTEMPTS
    return sorted(kept.iterdir(), key=lambda path: int(path.name)) if kept.is_dir() else []


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Let one launcher at a time decide whether a job has ended and may be continued."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # a file system without locks: the trainer's own lock of the run still holds
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def begin_next(folder: Path, job: Mapping[str, Any]) -> None:
    """Keep the ended attempt's records apart, and write those of the next.

    The exit record goes last: until then the job is seen to have ended, and never to be lost.

    Raises:
        LauncherError: a file cannot be moved or written.
    """
    old = records.read_record(folder / records.JOB) or {}
    number = attempt_of(old)
    kept = folder / _ATTEMPTS / str(number)
    try:
        kept.mkdir(parents=True, exist_ok=True)
        for name in (records.CANCEL, records.PROCESSES, records.CLOCK, records.CONSOLE):
            _move(folder / name, kept)
        if old:
            records.write_record(kept / records.JOB, "LocalJob", old)
        records.write_record(folder / records.JOB, "LocalJob", {**job, "attempt": number + 1})
        _move(folder / records.EXIT, kept)
    except OSError as error:
        raise LauncherError(f"{kept}: cannot be written: {error.strerror}; free or change XDG_STATE_HOME") from error


def _move(path: Path, folder: Path) -> None:
    if path.exists():
        path.rename(folder / path.name)
