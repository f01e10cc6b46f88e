"""One worker process as the supervisor holds it: its pipe, its log file, and how it ended."""

import fcntl
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from trainer.shared.errors import TrainerError
from trainer.supervisor.failure_cause import Ending
from trainer.supervisor.lines import Tagger
from trainer.supervisor.output import LogFile

PIPE_SIZE = 1 << 20  # bytes; ten thousand lines before a worker has to wait, where the kernel allows it
CHUNK = 1 << 16


@dataclass(frozen=True)
class WorkerCommand:
    """How to start one worker.

    A Python worker needs `-u` in `argv`: without it, what a process printed before it was killed is lost.
    """

    rank: int
    device: str
    """As it is shown: `npu:3`."""
    argv: tuple[str, ...]
    env: Mapping[str, str]
    log: Path
    """File that gets the worker's tagged lines; its folder has to exist."""


class WorkerProcess:
    """A started worker. It stays a zombie until `close`, so that its id keeps meaning this worker."""

    def __init__(self, command: WorkerCommand) -> None:
        """Start it as the leader of its own session, with the lifeline on stdin and one pipe for what it prints.

        It begins with SIGUSR1 blocked, which by default would end it before it can listen.

        Raises:
            TrainerError: it cannot be started.
        """
        self.command = command
        self.tagger = Tagger(f"rank {command.rank} {command.device}")
        self.log = LogFile(command.log)
        self.pipe, writing = os.pipe()
        try:
            _enlarge(self.pipe)
            os.set_blocking(self.pipe, False)
            # A session of its own: a terminal's Ctrl-C reaches the supervisor alone, and its children can be ended.
            with _blocked(signal.SIGUSR1):
                self._process = subprocess.Popen(
                    command.argv,
                    env=dict(command.env),
                    stdin=subprocess.PIPE,
                    stdout=writing,
                    stderr=writing,
                    start_new_session=True,
                )
        except OSError as error:
            os.close(self.pipe)
            self.log.close()
            raise TrainerError(
                f"worker of rank {command.rank} cannot be started: {error.strerror}: {command.argv[0]}"
            ) from error
        finally:
            os.close(writing)
        self.open, self.at_end, self.idle = True, False, True
        self.ended_at: float | None = None
        self.told_to_stop = self.killed = False
        self.returncode = 0
        self.error_at = float("inf")
        self.drain_by = 0.0
        self.children_killed = False

    def read(self, now: float) -> bytes:
        """The tagged lines of up to 64 KiB of what is in the pipe; `idle` or `at_end` says that there was nothing."""
        try:
            chunk = os.read(self.pipe, CHUNK)
        except BlockingIOError:
            self.idle = True
            return b""
        self.idle, self.at_end = False, not chunk
        before = self.tagger.error_line
        tagged = self.tagger.feed(chunk) if chunk else self.tagger.close()
        if self.tagger.error_line is not before:
            self.error_at = now
        return tagged

    def close_pipe(self) -> bytes:
        """Read no more; the tagged form of a last line without an end."""
        os.close(self.pipe)
        self.open = False
        return self.tagger.close()

    def look(self, now: float, *, drain_s: float) -> None:
        """Note that it has ended, if it has; its pipe is read for `drain_s` seconds more at most."""
        if self.ended_at is not None:
            return
        status = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if status is not None:
            self.returncode = status.si_status if status.si_code == os.CLD_EXITED else -status.si_status
            self.ended_at, self.drain_by = now, now + drain_s

    def signal(self, number: int) -> None:
        """Send a signal to the worker alone; its children are its own affair."""
        if self.ended_at is None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        """End the worker and all its children that have not left its session."""
        with suppress(PermissionError, ProcessLookupError):  # nobody left, or somebody who is no longer ours
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End what it has left behind, and forget it."""
        self.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self.open:
            self.close_pipe()
        self.log.close()

    def ending(self) -> Ending:
        """What is known after its end."""
        return Ending(
            rank=self.command.rank,
            device=self.command.device,
            returncode=self.returncode,
            ended_at=self.ended_at or 0.0,
            told_to_stop=self.told_to_stop,
            killed=self.killed,
            error_line=self.tagger.error_line,
            error_at=self.error_at,
            lines_since_error=self.tagger.lines_since_error,
            last_line=self.tagger.last_line,
        )


@contextmanager
def _blocked(number: int) -> Iterator[None]:
    """What is started in this context inherits that the signal waits."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _enlarge(pipe: int) -> None:
    with suppress(PermissionError):  # the user's share of pipe memory is used up: the usual 64 KiB do
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
