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

from launcher.errors import LauncherError

API_VERSION = "pnas/v1"

JOB = "job.json"
PROCESSES = "processes.json"
CANCEL = "cancel.json"
EXIT = "exit.json"
CLOCK = "clock"
CONSOLE = "console.log"


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
    text = json.dumps({"apiVersion": API_VERSION, "kind": kind, **values}, indent=1)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
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
    except (OSError, ValueError) as error:
        raise LauncherError(f"{path}: cannot be read: {error}; delete the job's folder by hand") from error
    if not isinstance(values, dict) or values.get("apiVersion") != API_VERSION:
        raise LauncherError(f"{path}: not a record of version {API_VERSION}; a newer launcher may have written it")
    return values
