"""One worker process: its pipe, its log file and its end, as the supervisor sees them; and its own death with it."""

import fcntl
import json
import math
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.shared.container import HIGHER_LIMIT
from trainer.shared.errors import TrainerError
from trainer.supervisor.failure_cause import WorkerEnd
from trainer.supervisor.output import LogFile, Tagger

_PIPE_SIZE = 1 << 20  # bytes; ten thousand lines before a worker has to wait, where the kernel allows it
_READ_SIZE = 1 << 16
_STDIN = 0
_PIPE_BUF = 4096
"""Bytes that a pipe takes whole or not at all (pipe(7))."""


@dataclass(frozen=True)
class WorkerCommand:
    """How to start one worker.

    Attributes:
        device: The device as lines show it: `npu:3`.
        argv: The command line. Python needs `-u` in it: without it, output just before a kill is lost.
        log: The file for the worker's tagged lines; its folder must exist.
        stops_later: A SIGTERM waits until the worker unblocks it, and does not end one that has not begun.
        pass_fds: Descriptors of this process that the worker inherits.
        check_owner: Raises a TrainerError if this folder belongs to another run by now.
    """

    rank: int
    device: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    log: Path
    check_owner: Callable[[], None] = lambda: None
    stops_later: bool = False
    pass_fds: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"rank={self.rank} device={self.device}"


class WorkerProcess:
    """A started worker. It stays a zombie until `close`, so that its id keeps meaning this worker."""

    def __init__(self, command: WorkerCommand, tagger: Tagger, log: LogFile) -> None:
        """Start it as a session leader, with the lifeline on stdin and one pipe for its output.

        It begins with SIGUSR1 blocked, which by default would end it before it can listen.

        Raises:
            TrainerError: It cannot be started.
        """
        self.command = command
        self.tagger = tagger
        self.log = log
        self.pipe, their_end = os.pipe()
        try:
            with suppress(PermissionError):  # the user's share of pipe memory is used up: the usual 64 KiB do
                fcntl.fcntl(self.pipe, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
            os.set_blocking(self.pipe, False)
            # Its own session: a terminal's Ctrl-C reaches only the supervisor, which can end all its children.
            with _blocked(signal.SIGUSR1, *((signal.SIGTERM,) if command.stops_later else ())):
                self._process = subprocess.Popen(
                    command.argv,
                    env=dict(command.env),
                    stdin=subprocess.PIPE,
                    stdout=their_end,
                    stderr=their_end,
                    pass_fds=command.pass_fds,
                    start_new_session=True,
                )
            if self._process.stdin is not None:
                os.set_blocking(self._process.stdin.fileno(), False)
        except OSError as error:
            os.close(self.pipe)
            next_step = HIGHER_LIMIT.get(error.errno or 0, f"check {command.argv[0]}")
            raise TrainerError(
                f"worker of rank {command.rank} cannot be started: {error.strerror}; {next_step}"
            ) from error
        finally:
            os.close(their_end)
        self.open, self.at_end, self.idle = True, False, True
        self.end = WorkerEnd(command.rank, command.device, self.tagger, pid=self._process.pid)
        self.drain_by = 0.0
        self.children_killed = False

    @property
    def running(self) -> bool:
        """Whether it has not ended, as far as `look` knows."""
        return self.end.ended_at == math.inf

    def read(self, now: float) -> bytes:
        """Return the tagged lines of up to 64 KiB in the pipe; `idle` or `at_end` says that it was empty."""
        try:
            chunk = os.read(self.pipe, _READ_SIZE)
        except BlockingIOError:
            self.idle = True
            return b""
        self.idle, self.at_end = False, not chunk
        before = self.tagger.error_line
        tagged = self.tagger.feed(chunk) if chunk else self.tagger.close()
        if self.tagger.error_line is not before:
            self.end.error_at = now
        return tagged

    def close_pipe(self) -> bytes:
        """Stop reading; return the tagged form of a last line without an end."""
        os.close(self.pipe)
        self.open = False
        return self.tagger.close()

    def look(self, now: float, *, drain_s: float) -> None:
        """Note its end, if it has ended; its pipe is read for `drain_s` seconds more at most."""
        if not self.running:
            return
        status = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if status is not None:
            self.end.returncode = status.si_status if status.si_code == os.CLD_EXITED else -status.si_status
            self.end.core_dumped = status.si_code == os.CLD_DUMPED
            self.end.ended_at, self.drain_by = now, now + drain_s

    def signal(self, number: int) -> None:
        """Send a signal to the worker but not to its children, which are its own affair."""
        if self.running:
            os.kill(self._process.pid, number)

    def tell(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows to the worker's stdin, as lines of JSON; one that finds no room is lost."""
        for row in rows:
            line = json.dumps(row).encode() + b"\n"
            if self.running and self._process.stdin is not None and len(line) <= _PIPE_BUF:
                with suppress(BlockingIOError, BrokenPipeError):
                    os.write(self._process.stdin.fileno(), line)

    def kill(self) -> None:
        """End the worker and all its children that have not left its session."""
        with suppress(PermissionError, ProcessLookupError):  # all have ended, or changed their user
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End its children that are left, and release everything."""
        self.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self.open:
            self.close_pipe()


def die_with_supervisor(on_line: Callable[[bytes], None] = lambda _line: None) -> None:
    """End this process and its children as soon as the supervisor is gone, even if the supervisor was killed.

    Else a killed supervisor would leave processes that hold every device of the node. It holds the other end of stdin:
    reading ends when the supervisor does. Call this first in a worker, and only there.

    Args:
        on_line: Called in another thread with each line that the supervisor writes; it must not wait.
    """
    threading.Thread(target=_wait_and_die, args=(on_line,), name="lifeline", daemon=True).start()


def _wait_and_die(on_line: Callable[[bytes], None]) -> None:
    rest = b""
    while chunk := os.read(_STDIN, _PIPE_BUF):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            on_line(line)
    if os.getpgrp() == os.getpid():  # the supervisor has started us as the leader of a new group
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)


@contextmanager
def _blocked(*numbers: int) -> Iterator[None]:
    """Block the signals in processes that are started in this context."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set(numbers))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
