"""The folder of a local job: small files for its settings, its processes and its end.

`STATE/pnas/jobs/<name>/` holds `job.json` (settings), `processes.json` (the runner and the trainer), `cancel.json` (the
time of a cancel), `exit.json` (the exit code), `clock` (the length of the log by time) and `console.log` (the trainer's
output). One writer writes each record whole, so a reader needs no lock. The runner imports this module, which therefore
needs only the standard library.

These files belong to the latest attempt; the files of an earlier one move to `attempts/<number>/`, so that its log and
its end stay readable. The lines of two attempts never mix, as each attempt numbers its lines from 1.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launcher.errors import LauncherError, NotFoundError
from launcher.recorded_spec import is_spec
from trainer.shared.documents import API_VERSION
from trainer.shared.errors import UsageError
from trainer.shared.files import replacing, with_home

JOB = "job.json"
PROCESSES = "processes.json"
CANCEL = "cancel.json"
EXIT = "exit.json"
CLOCK = "clock"
CONSOLE = "console.log"
_ATTEMPTS = "attempts"

_LATEST_S = 253_402_300_799
"""The last second of the year 9999: no later time can be shown."""


def _is(*kinds: type) -> Callable[[object], bool]:
    return lambda value: isinstance(value, kinds)


def _is_time(value: object) -> bool:
    return isinstance(value, (int, float)) and 0 <= value <= _LATEST_S  # NaN is not


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


# The fields that are read, with the test of their values; a file that fails a test is damaged.
_FIELDS: Mapping[str, Mapping[str, Callable[[object], bool]]] = {
    JOB: {
        "created": _is_time,
        "command": _are_texts,
        "cwd": _is(str),
        "host": _is(str),
        "spec": is_spec,
        "output": _is(str),
    },
    PROCESSES: {"runner": _is(dict)},
    CANCEL: {"requested": _is_time},
    EXIT: {"returncode": _is(int), "ended": _is_time},
}
_OPTIONAL_FIELDS: Mapping[str, Mapping[str, Callable[[object], bool]]] = {
    JOB: {"attempt": _is(int)},
    PROCESSES: {"started": _is_time},
}
# The trainer's exit code for options that it refused.
_REFUSED = UsageError.exit_code
# Bytes; an exit record is shorter.
_RESERVED = 512


def state_home(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of all jobs: `$XDG_STATE_HOME/pnas/jobs`, by default under `~/.local/state`."""
    candidates = (Path(environ.get("XDG_STATE_HOME", "")), with_home(Path("~/.local/state")))
    # As the XDG specification demands, ignore a relative path: every folder must see the same jobs. A user without a
    # home folder has /, as in a container.
    home = next((path for path in candidates if path.is_absolute()), Path("/.local/state"))
    return home / "pnas" / "jobs"


def write_record(path: Path, kind: str, values: Mapping[str, Any]) -> None:
    """Write a record whole or not at all, even through a crash.

    Raises:
        LauncherError: the disk is full, or the user has no right to write.
    """
    text = json.dumps({"apiVersion": API_VERSION, "kind": kind, **values}, indent=1) + "\n"
    reserved = _reserved(path)
    # Several launchers can cancel one job at once.
    partial = reserved if reserved.exists() else path.with_name(f".{path.name}.{os.getpid()}")
    # Write over a reservation, and do not truncate it: its disk space must stay reserved.
    mode = "r+" if partial is reserved else "w"
    with _translate_errors(path), replacing(path, partial=partial), partial.open(mode, encoding="utf-8") as file:
        file.write(text)


def reserve_record(path: Path) -> None:
    """Reserve the disk space of a record, which can then be written to a full disk.

    Raises:
        LauncherError: the disk is full already.
    """
    with _translate_errors(path):
        # JSON allows trailing blanks.
        _reserved(path).write_text(" " * _RESERVED, encoding="ascii")


def read_record(path: Path) -> dict[str, Any] | None:
    """Read a record; None if it has not been written.

    Raises:
        LauncherError: the record is damaged, or of an unknown version.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LauncherError(f"{path}: cannot be read: {error.strerror}; make it readable") from error
    except (ValueError, RecursionError) as error:
        raise LauncherError(f"{path}: damaged ({error}); remove the folder {path.parent} to forget the job") from error
    if not isinstance(values, dict) or values.get("apiVersion") != API_VERSION:
        raise LauncherError(
            f"{path}: not a record of version {API_VERSION}; use the launcher that wrote it, "
            f"or remove the folder {path.parent} to forget the job"
        )
    wrong = [name for name, test in _FIELDS[path.name].items() if not test(values.get(name))]
    optional = _OPTIONAL_FIELDS.get(path.name, {}).items()
    wrong += [name for name, test in optional if name in values and not test(values[name])]
    if wrong:
        raise LauncherError(
            f"{path}: damaged (no valid {' and '.join(wrong)}); remove the folder {path.parent} to forget the job"
        )
    return values


def attempt_of(job: Mapping[str, Any]) -> int:
    """Return which attempt a job's record describes."""
    return int(job.get("attempt", 1))


def attempt_folder(folder: Path, number: int | None) -> Path:
    """Return the folder with the records of an attempt; the latest attempt without a `number`.

    Raises:
        NotFoundError: the job has no such attempt.
    """
    latest = attempt_of(read_record(folder / JOB) or {})
    if number is None or number == latest:
        return folder
    earlier = folder / _ATTEMPTS / str(number)
    if not earlier.is_dir():
        have = "attempt 1 only" if latest == 1 else f"attempts 1 to {latest}"
        raise NotFoundError(f"job {folder.name} has {have}: there is no attempt {number}")
    return earlier


def is_earlier(folder: Path) -> bool:
    """Return whether a folder has the records of an earlier attempt, which then moved there."""
    return folder.parent.name == _ATTEMPTS


def earlier_attempts(folder: Path) -> list[Path]:
    """Return the folders of the attempts before the latest one, oldest first."""
    attempts = folder / _ATTEMPTS
    folders = [path for path in attempts.iterdir() if path.name.isdecimal()] if attempts.is_dir() else []
    return sorted(folders, key=lambda path: int(path.name))


def latest_begun(folder: Path) -> dict[str, Any]:
    """Return the record of the latest attempt whose trainer began to work; of the first if none began.

    A refused attempt changed nothing in the run, so its options do not count for later ones.
    """
    attempts = [*earlier_attempts(folder), folder]
    begun = [path for path in attempts if (read_record(path / EXIT) or {}).get("returncode") != _REFUSED]
    return read_record([*attempts[:1], *begun][-1] / JOB) or {}


def begin_next(folder: Path, job: Mapping[str, Any]) -> None:
    """Move the ended attempt's records to its own folder, and write the record of the next attempt.

    The exit record moves last: until then a reader sees an ended job, never a lost one.

    Raises:
        LauncherError: the disk is full, or the user has no right to write.
    """
    old = read_record(folder / JOB) or {}
    number = attempt_of(old)
    earlier = folder / _ATTEMPTS / str(number)
    with _translate_errors(earlier):
        earlier.mkdir(parents=True, exist_ok=True)
        for name in (CANCEL, PROCESSES, CLOCK, CONSOLE):
            _move(folder / name, earlier)
        if old:
            write_record(earlier / JOB, "LocalJob", old)
        write_record(folder / JOB, "LocalJob", {**job, "attempt": number + 1})
        _move(folder / EXIT, earlier)


def _move(path: Path, folder: Path) -> None:
    if path.exists():
        path.rename(folder / path.name)


def _reserved(path: Path) -> Path:
    return path.with_name(f".{path.name}.reserved")


@contextmanager
def _translate_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LauncherError(f"{path}: cannot be written: {error.strerror}; free or change XDG_STATE_HOME") from error
