"""The supervisor's one loop: workers' pipes, signals, the end of processes, and a stdout that may be slow.

One thread, one selector: every promise about order and loss can be read off this page.
"""

import os
import selectors
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import BinaryIO

from trainer.shared.errors import RESUMABLE
from trainer.supervisor.failure_cause import Outcome, Stop, decide, describe, why
from trainer.supervisor.lines import Tagger
from trainer.supervisor.output import Stdout
from trainer.supervisor.worker import WorkerCommand, WorkerProcess

STOP_S = 5.0  # after one worker's failure the others hang in a collective operation: little to wait for
SETTLE_S = 1.0  # a worker that speaks of a lost peer failed second: the first may still be shutting down
DRAIN_S = 1.0  # a child that outlives its worker keeps the pipe open for ever
FLUSH_S = 5.0  # what a reader that has stopped reading may cost when the node is told to stop
BUFFER = 1 << 20  # bytes for stdout that may wait before the workers have to
STOPPING_BUFFER = 1 << 26  # but a worker that is saving its work must not wait for a terminal


def supervise(commands: Sequence[WorkerCommand], *, stdout: BinaryIO, node_rank: int, grace_s: float) -> Outcome:
    """Run every worker to its end; call it from the main thread.

    Each line that a worker prints, on stdout or stderr, goes to `stdout` and to the worker's log file as
    `[rank 3 npu:3 #1042] text`; the supervisor's own are `[node 0 #5] text`. When one worker fails the others are
    stopped. At the end `ended lines="3:1042 4:977" outcome=failed` counts each rank's lines and says how it went; the
    first cause of a failure follows as the last line. SIGTERM and SIGINT are passed on as SIGTERM, SIGUSR1 as it is;
    after `grace_s` seconds, or at a second SIGTERM or SIGINT, the workers are killed.

    Returns:
        Exit code 0; 75 if the workers have stopped resumably; the first failing worker's if it is 1, 2 or 6; else 1.

    Raises:
        TrainerError: a worker cannot be started; none is left running.
    """
    stdout.flush()
    with ExitStack() as stack:
        signals = stack.enter_context(_signals())
        loop = _Loop(Stdout(stdout.fileno()), signals, node_rank=node_rank, grace_s=grace_s)
        stack.callback(loop.close)
        for command in commands:
            loop.start(command)
        return loop.run()


@contextmanager
def _signals() -> Iterator[int]:
    """A descriptor on which every signal that concerns the supervisor arrives as one byte, its number."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    previous_fd = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    numbers = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    previous = {number: signal.signal(number, _noted) for number in numbers}
    try:
        yield reading
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(previous_fd)
        os.close(reading)
        os.close(writing)


def _noted(_number: int, _frame: FrameType | None) -> None:
    """The byte in the wake-up descriptor is all: the loop acts on it."""


class _Loop:
    """The state of one node's run."""

    def __init__(self, stdout: Stdout, signals: int, *, node_rank: int, grace_s: float) -> None:
        self._stdout = stdout
        self._signals = signals
        self._grace_s = grace_s
        self._node = Tagger(f"node {node_rank}")
        self._workers: list[WorkerProcess] = []
        self._selector = selectors.DefaultSelector()
        self._selector.register(signals, selectors.EVENT_READ)
        self._reading = True
        self._silent: list[WorkerProcess] = []
        self._mute = False
        self._stop_requests = 0
        self._stopping: Stop | None = None
        self._kill_at: float | None = None
        self._killed = False

    def start(self, command: WorkerCommand) -> None:
        self._workers.append(WorkerProcess(command))

    def run(self) -> Outcome:
        while any(worker.open or worker.ended_at is None for worker in self._workers):
            self._turn(self._next_deadline())
        endings = [worker.ending() for worker in self._workers]
        outcome = decide(endings, stop=self._stopping)
        # Who follows the lines can tell by these counts that the last ones have arrived.
        counts = " ".join(f"{worker.command.rank}:{worker.tagger.count}" for worker in self._workers)
        self._say(f'ended lines="{counts}" outcome={outcome.word}')
        if outcome.first_failure is not None:
            self._say(describe(outcome.first_failure))
        self._flush()
        return outcome

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
        self._selector.close()

    # Waiting

    def _turn(self, deadline: float | None) -> None:
        """Wait until something happens or is due, and act on it."""
        self._listen()
        events = self._selector.select(None if deadline is None else max(0.0, deadline - time.monotonic()))
        now = time.monotonic()
        self._print([self._read(key.data, now) for key, _ in events if isinstance(key.data, WorkerProcess)])
        self._look(now)
        if any(key.fd == self._signals for key, _ in events):
            self._receive(now)
            # Nothing else may tell of an end that these told of. Those that a stop has brought about came after it.
            self._look(time.monotonic())
        self._print([self._drain(worker, now) for worker in self._workers if self._drain_due(worker, now)])
        self._stop_if_one_has_failed(now)
        self._kill_if_due(now)

    def _look(self, now: float) -> None:
        for worker in self._workers:
            worker.look(now, drain_s=DRAIN_S)

    def _listen(self) -> None:
        """To the workers unless stdout is behind; to stdout if something waits for it."""
        limit = BUFFER if self._stopping is None else STOPPING_BUFFER
        self._reading = self._killed or len(self._stdout.pending) <= limit
        for worker in self._workers:
            self._select(worker.pipe, selectors.EVENT_READ, worker, wanted=worker.open and self._reading)
        self._select(self._stdout.fd, selectors.EVENT_WRITE, None, wanted=bool(self._stdout.pending))

    def _select(self, fd: int, event: int, data: WorkerProcess | None, *, wanted: bool) -> None:
        listening = self._selector.get_map().get(fd) is not None
        if wanted and not listening:
            self._selector.register(fd, event, data)
        elif listening and not wanted:
            self._selector.unregister(fd)

    def _next_deadline(self) -> float | None:
        due = [worker.drain_by for worker in self._workers if self._drain_due(worker, float("inf"))]
        due += [at for at in (self._stop_due(), self._kill_at if not self._killed else None) if at is not None]
        return min(due, default=None)

    # Lines

    def _read(self, worker: WorkerProcess, now: float) -> bytes:
        tagged = worker.read(now)
        worker.log.write(tagged)
        return tagged + self._end_of(worker) if worker.at_end else tagged

    def _end_of(self, worker: WorkerProcess) -> bytes:
        self._select(worker.pipe, selectors.EVENT_READ, worker, wanted=False)
        tagged = worker.close_pipe()
        worker.log.write(tagged)
        return tagged

    def _drain_due(self, worker: WorkerProcess, now: float) -> bool:
        return worker.open and worker.ended_at is not None and self._reading and now >= worker.drain_by

    def _drain(self, worker: WorkerProcess, now: float) -> bytes:
        """The worker is gone, but one of its children holds the pipe: end the child, then close the pipe."""
        if not worker.children_killed:
            worker.kill()
            worker.children_killed, worker.drain_by = True, now + DRAIN_S
            return b""
        output = []
        for _ in range(64):  # more than a pipe holds; a child in another session could go on for ever
            output.append(self._read(worker, now))
            if worker.idle or worker.at_end:
                break
        if worker.open:
            output.append(self._end_of(worker))
        return b"".join(output)

    def _print(self, output: Sequence[bytes]) -> None:
        """Write what there is, and say it once where a stdout or a file has broken."""
        self._stdout.write(b"".join(output))
        for worker in self._workers:
            if worker.log.error is not None and worker not in self._silent:
                self._silent.append(worker)
                self._say(f"log of rank={worker.command.rank} cannot be written: {worker.log.error}: {worker.log.path}")
        if self._stdout.error is not None and not self._mute:
            self._mute = True
            self._say(f"stdout cannot be written: {self._stdout.error}; the lines go on in this file")

    def _say(self, text: str) -> None:
        """A line of the supervisor's own; in the workers' files if stdout is gone."""
        line = self._node.say(text)
        if self._stdout.error is None:
            self._stdout.write(line)
        if self._stdout.error is not None:
            for worker in self._workers:
                worker.log.write(line)

    def _flush(self) -> None:
        """Give stdout the time it needs; once the node has been told to stop, only a few seconds."""
        give_up_at = None
        while self._stdout.pending:
            if self._stop_requests and give_up_at is None:
                give_up_at = time.monotonic() + FLUSH_S
            if give_up_at is not None and (self._stop_requests > 1 or time.monotonic() >= give_up_at):
                return
            self._turn(give_up_at)

    # Signals and ends

    def _receive(self, now: float) -> None:
        for number in os.read(self._signals, 1 << 12):
            if number == signal.SIGUSR1:
                for worker in self._workers:
                    worker.signal(number)
            elif number in {signal.SIGTERM, signal.SIGINT}:
                self._stop_requests += 1
                name = signal.Signals(number).name
                if self._stop_requests > 1:
                    self._kill_at = now
                elif self._stopping is None:
                    self._say(f"received {name}: the workers have {self._grace_s:g} s to stop")
                    self._stop(Stop(now, f"stopped by {name}", asked=True), within_s=self._grace_s)

    def _stop(self, stop: Stop, *, within_s: float) -> None:
        self._stopping, self._kill_at = stop, stop.at + within_s
        for worker in self._workers:
            worker.told_to_stop = worker.ended_at is None
            worker.signal(signal.SIGTERM)

    def _stop_due(self) -> float | None:
        """When the workers that still run have to stop because another has ended; None if none has to."""
        if self._stopping is not None or all(worker.ended_at is not None for worker in self._workers):
            return None
        return min((at for worker in self._workers if (at := self._end_counts_at(worker)) is not None), default=None)

    def _end_counts_at(self, worker: WorkerProcess) -> float | None:
        if worker.ended_at is None or worker.returncode == 0:
            return None
        if worker.returncode == RESUMABLE:  # all workers agree on that; the last may still be saving
            return worker.ended_at + self._grace_s
        if worker.open:  # its last words have not been read yet
            return worker.ended_at + DRAIN_S
        return worker.ended_at + (SETTLE_S if worker.ending().secondary else 0.0)

    def _stop_if_one_has_failed(self, now: float) -> None:
        due = self._stop_due()
        if due is None or now < due:
            return
        ended = [worker for worker in self._workers if worker.ended_at is not None and worker.returncode != 0]
        first = min(ended, key=lambda worker: worker.ended_at or 0.0)
        tag = f"rank={first.command.rank} device={first.command.device}"
        if all(worker.returncode == RESUMABLE for worker in ended):
            reason = f"still running {self._grace_s:g} s after {tag} had stopped"
            self._stop(Stop(now, reason, asked=False), within_s=STOP_S)
        else:
            self._say(f"{tag} has ended ({why(first.ending())}); stopping the others")
            self._stop(Stop(now, None, asked=False), within_s=STOP_S)

    def _kill_if_due(self, now: float) -> None:
        if self._kill_at is None or now < self._kill_at or self._killed:
            return
        self._killed = True
        left = [worker for worker in self._workers if worker.ended_at is None]
        if left:
            ranks = ",".join(str(worker.command.rank) for worker in left)
            self._say(f"killing rank={ranks}: still running")
        for worker in left:
            worker.killed = True
            worker.kill()
