"""Run a program to its end, for a limited time; a signal to this process ends the program and its children at once."""

import contextlib
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import psutil

from trainer.proof.process_tree import kill_tree
from trainer.supervisor.signals import STOPS, SignalInbox

_END_S = 20.0
"""How long the workers of a killed trainer may need to end; they hold the devices until then."""


class SignalledError(Exception):
    """This process has been asked to stop, by the signal `number`."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class BoundedCommands(contextlib.AbstractContextManager["BoundedCommands"]):
    """Runs programs one after the other; while the context lasts, it takes the signals of this process."""

    def __init__(self) -> None:
        self._inbox = SignalInbox()

    def __enter__(self) -> "BoundedCommands":
        self._inbox.open()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._inbox.close()

    def run(self, command: Sequence[str], environ: Mapping[str, str], output: Path, limit_s: float) -> int | None:
        """Run a command line, its output in a file; return its exit code, or None if it was killed at the limit.

        Raises:
            SignalledError: a signal asks this process to stop; the program has ended.
        """
        with output.open("wb") as file:
            process = subprocess.Popen(
                command,
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                # A terminal's Ctrl-C is for this process, which then ends it.
                start_new_session=True,
            )
        deadline = time.monotonic() + limit_s
        try:
            while process.poll() is None:
                if time.monotonic() >= deadline:
                    return None
                self._wait(deadline - time.monotonic())
        finally:
            _kill(process)
        return process.returncode

    def _wait(self, seconds: float) -> None:
        """Wait for a signal; the end of the program is one too."""
        poll = select.poll()
        poll.register(self._inbox.fd, select.POLLIN)
        poll.poll(max(0.0, seconds) * 1000 + 1)
        if stop := next((number for number in self._inbox.read() if number in STOPS), None):
            raise SignalledError(stop)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill a program that still runs, and wait for its children, each of which has its own session."""
    if process.poll() is not None:
        return
    psutil.wait_procs(kill_tree(process), timeout=_END_S)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_END_S)
