"""A local job's folder: the small files that say what it is, which processes it has, and how it ended.

`STATE/pnas/jobs/<name>/` holds `job.json` (what was asked), `processes.json` (who runs it), `cancel.json` (that it
was asked to stop), `exit.json` (how it ended), `clock` (how long the log was, when) and `console.log` (all that the
trainer printed). A record is always written whole, by one writer, so a reader never needs a lock. Only the standard
library: the runner imports this.
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

# What is read from each record; a file that lacks it, or has something else there, is not one of ours.
_NUMBER = (int, float)
_FIELDS: Mapping[str, Mapping[str, type | tuple[type, ...]]] = {
    JOB: {"created": _NUMBER, "command": list, "cwd": str, "host": str, "spec": dict, "output": str},
    PROCESSES: {"runner": dict},
    CANCEL: {"requested": _NUMBER},
    EXIT: {"returncode": int, "ended": _NUMBER},
}
# More than an exit record ever takes.
_RESERVED = 512


def state_home(environ: Mapping[str, str] = os.environ) -> Path:
    """Where jobs are remembered: `$XDG_STATE_HOME/pnas/jobs`, by default under `~/.local/state`."""
    home = Path(environ.get("XDG_STATE_HOME", ""))
    # The XDG specification has relative paths ignored: jobs must be found from every folder.
    return (home if home.is_absolute() else Path.home() / ".local" / "state") / "pnas" / "jobs"


def write_record(path: Path, kind: str, values: Mapping[str, Any]) -> None:
    """Write a record whole or not at all, even through a crash.

    Raises:
        LauncherError: it cannot be written (disk full, no rights).
    """
    text = json.dumps({"apiVersion": API_VERSION, "kind": kind, **values}, indent=1) + "\n"
    reserved = _reserved(path)
    # Several launchers can cancel one job at once.
    partial = reserved if reserved.exists() else path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # Write over a reservation instead of truncating it: it already has its room on the disk.
        with (
            replacing(path, partial=partial),
            partial.open("r+" if partial is reserved else "w", encoding="utf-8") as file,
        ):
            file.write(text)
    except OSError as error:
        raise LauncherError(f"{path}: cannot be written: {error.strerror}; free or change XDG_STATE_HOME") from error


def reserve_record(path: Path) -> None:
    """Take the room that a record will need, so that it can be written even when the disk is full by then.

    Raises:
        LauncherError: there is no room now.
    """
    try:
        # JSON ends in as many blanks as one likes.
        _reserved(path).write_text(" " * _RESERVED, encoding="ascii")
    except OSError as error:
        raise LauncherError(f"{path}: cannot be written: {error.strerror}; free or change XDG_STATE_HOME") from error


def read_record(path: Path) -> dict[str, Any] | None:
    """Read a record; None if it has not been written.

    Raises:
        LauncherError: it is damaged, or of a version that this launcher does not know.
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
