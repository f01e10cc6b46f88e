"""The end of a process with everything that it has started."""

import contextlib
import os
import signal
from typing import Protocol

import psutil


class StartedProcess(Protocol):
    """A process that this one has started, as subprocess.Popen has it."""

    pid: int

    def poll(self) -> int | None:
        """Return its exit code; None if it still runs."""


def kill_tree(process: StartedProcess) -> list[psutil.Process]:
    """Kill a process, the group that it leads, and its descendants, also in other sessions.

    Each one is stopped before its children are listed, parents first, so that no supervisor starts workers again. Where
    the process has ended before, only its group is left to kill.

    Returns:
        Its descendants, to wait for: they hold devices until they have ended.
    """
    tree = [psutil.Process(process.pid)] if process.poll() is None else []
    for member in tree:  # it grows
        with contextlib.suppress(psutil.Error):
            member.suspend()
            tree += member.children()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for member in tree:
        with contextlib.suppress(psutil.Error):
            member.kill()
    return tree[1:]
