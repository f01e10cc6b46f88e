"""Processes by identity: a pid together with its start, so that a reused pid is never taken for the earlier process.

A job outlives the launcher that started it, and a run's lock outlives a killed trainer. Days later the pid may belong
to an unrelated program, which must neither be reported as the job nor receive its signals.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from trainer.shared.files import text_if_readable

_PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """A process on this machine. `started` is `<boot id>:<ticks since boot>`, or empty on a system without /proc."""

    pid: int
    started: str


def identify(pid: int) -> Process:
    """Return the identity of a running process."""
    return Process(pid, _start(pid) or "")


def is_alive(process: Process) -> bool:
    """Return whether this very process still runs. A zombie does not: it has ended and waits for its parent."""
    if (_PROC / "self/stat").exists():
        return bool(process.started) and _start(process.pid) == process.started
    return _exists(process.pid)


def is_hidden(pid: int) -> bool:
    """Return whether a process has this pid but /proc hides it, because it is another user's (`hidepid`)."""
    return not text_if_readable(_PROC / str(pid) / "stat") and _exists(pid)


def send_signal(process: Process, signal: int) -> bool:
    """Signal the process if it still runs; return False if it does not."""
    if not is_alive(process):
        return False
    try:
        os.kill(process.pid, signal)
    except ProcessLookupError:
        return False
    return True


def pid_namespace() -> str:
    """Return the namespace in which this process's pid has a meaning: containers number their processes from 1."""
    try:
        return str((_PROC / "self/ns/pid").readlink())
    except OSError:
        return ""


def _start(pid: int) -> str | None:
    """Return `<boot id>:<ticks since boot>` of a living process, or None (proc(5): fields 3, state; 22, starttime)."""
    # The program's name, in parentheses, may hold blanks and parentheses itself.
    fields = text_if_readable(_PROC / str(pid) / "stat").rpartition(")")[2].split()
    boot = text_if_readable(_PROC / "sys/kernel/random/boot_id").strip()
    return f"{boot}:{fields[19]}" if boot and len(fields) > 19 and fields[0] not in "ZX" else None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
