"""The folder of a local job: small files for its settings, its processes and its end.

`STATE/pnas/jobs/<name>/` holds `job.json` (settings), `processes.json` (the runner and the trainer), `cancel.json` (the
time of a cancel), `exit.json` (the exit code), `clock` (the length of the log by time) and `console.log` (the trainer's
output). One writer writes each record whole, so a reader needs no lock. The runner imports this module, which therefore
needs only the standard library.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher import API_VERSION
from launcher.errors import LauncherError
from trainer.shared.files import replacing

JOB = "job.json"
PROCESSES = "processes.json"
CANCEL = "cancel.json"
EXIT = "exit.json"
CLOCK = "clock"
CONSOLE = "console.log"

# The fields that are read; a file without them, or with other types, is damaged.
_NUMBER = (int, float)
_FIELDS: Mapping[str, Mapping[str, type | tuple[type, ...]]] = {
    JOB: {"created": _NUMBER, "command": list, "cwd": str, "host": str, "spec": dict, "output": str},
    PROCESSES: {"runner": dict},
    CANCEL: {"requested": _NUMBER},
    EXIT: {"returncode": int, "ended": _NUMBER},
}
# Bytes; an exit record is shorter.
_RESERVED = 512


def state_home(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of all jobs: `$XDG_STATE_HOME/pnas/jobs`, by default under `~/.local/state`."""
    home = Path(environ.get("XDG_STATE_HOME", ""))
    # As the XDG specification demands, ignore a relative path: every folder must see the same jobs.
    return (home if home.is_absolute() else Path.home() / ".local" / "state") / "pnas" / "jobs"


def write_record(path: Path, kind: str, values: Mapping[str, Any]) -> None:
    """Write a record whole or not at all, even through a crash.

    Raises:
        LauncherError: the disk is full, or the user has no right to write.
    """
    text = json.dumps({"apiVersion": API_VERSION, "kind": kind, **values}, indent=1) + "\n"
    reserved = _reserved(path)
    # Several launchers can cancel one job at once.
    partial = reserved if reserved.exists() else path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # Write over a reservation, and do not truncate it: its disk space must stay reserved.
        with (
            replacing(path, partial=partial),
            partial.open("r+" if partial is reserved else "w", encoding="utf-8") as file,
        ):
            file.write(text)
    except OSError as error:
        raise LauncherError(f"{path}: cannot be written: {error.strerror}; free or change XDG_STATE_HOME") from error


def reserve_record(path: Path) -> None:
    """Reserve the disk space of a record, which can then be written to a full disk.

    Raises:
        LauncherError: the disk is full already.
    """
    try:
        # JSON allows trailing blanks.
        _reserved(path).write_text(" " * _RESERVED, encoding="ascii")
    except OSError as error:
        raise LauncherError(f"{path}: cannot be written: {error.strerror}; free or change XDG_STATE_HOME") from error


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
    except ValueError as error:
        raise LauncherError(f"{path}: damaged ({error}); remove the folder {path.parent} to forget the job") from error
    if not isinstance(values, dict) or values.get("apiVersion") != API_VERSION:
        raise LauncherError(
            f"{path}: not a record of version {API_VERSION}; use the launcher that wrote it, "
            f"or remove the folder {path.parent} to forget the job"
        )
    wrong = [name for name, kind in _FIELDS[path.name].items() if not isinstance(values.get(name), kind)]
    if wrong:
        raise LauncherError(
            f"{path}: damaged (no valid {' and '.join(wrong)}); remove the folder {path.parent} to forget the job"
        )
    return values


def _reserved(path: Path) -> Path:
    return path.with_name(f".{path.name}.reserved")
