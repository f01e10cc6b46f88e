"""Processes by identity: a pid together with its start time, so that a reused pid is never taken for the job.

A job outlives the launcher that started it; days later its pid may belong to somebody else's program, which must
neither be reported as the job nor receive its signals. Only the standard library: the runner imports this.
"""

import os
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """A process on this machine. `started` is opaque, and empty where the system does not tell (no /proc)."""

    pid: int
    started: str


def identify(pid: int) -> Process:
    """The identity of a running process."""
    return Process(pid, _start_time(pid) or "")


def is_alive(process: Process) -> bool:
    """Whether this very process still runs. A zombie does not: it has ended and waits for its parent to notice."""
    if (_PROC / "self" / "stat").exists():
        return bool(process.started) and _start_time(process.pid) == process.started
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def send_signal(process: Process, signal: int) -> bool:
    """Signal the process if it still runs; False if it does not."""
    if not is_alive(process):
        return False
    try:
        os.kill(process.pid, signal)
    except ProcessLookupError:
        return False
    return True


def _start_time(pid: int) -> str | None:
    """`<boot id>:<ticks since boot>` of a living process, or None (proc(5): fields 3, state, and 22, starttime)."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        boot = (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None
    # The program's name, in parentheses, may hold blanks and parentheses itself.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"
