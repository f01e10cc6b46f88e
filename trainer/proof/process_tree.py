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

    All are stopped first, parents before their children, so that no supervisor starts workers again. Where the process
    has ended before, only its group is left to kill.

    Returns:
        Its descendants, to wait for: they hold devices until they have ended.
    """
    descendants: list[psutil.Process] = []
    if process.poll() is None:
        leader = psutil.Process(process.pid)
        leader.suspend()
        # Again until there are no more: a process can have started others until it has noticed the signal.
        while started := [child for child in leader.children(recursive=True) if child not in descendants]:
            descendants += started
            for child in started:
                with contextlib.suppress(psutil.Error):
                    child.suspend()
        leader.kill()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for child in descendants:
        with contextlib.suppress(psutil.Error):
            child.kill()
    return descendants
