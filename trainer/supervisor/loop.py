"""The supervisor's one loop: workers' pipes, signals, the end of processes, and a stdout that may be slow.

One thread, one selector: this page holds every promise about order and loss.
"""

import dataclasses
import selectors
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from trainer.shared.errors import RESUMABLE, FolderTakenError
from trainer.supervisor.console import Console
from trainer.supervisor.failure_cause import Failure, Outcome, StopOrder, decide
from trainer.supervisor.signals import HAND_OVER, STOPS, SignalInbox
from trainer.supervisor.worker import WorkerCommand, WorkerProcess

_BUFFER = 1 << 20  # bytes for stdout that may wait before the workers have to
_STOPPING_BUFFER = 1 << 26  # but a worker that is saving its work must not wait for a terminal

Loss = Callable[[], str | None]
Sample = Mapping[str, Any]
"""The figures of one device, with its `device`, `node`, `time`, and its `rank` unless it is the host."""


@dataclass(frozen=True)
class Limits:
    """Waiting times in seconds.

    Attributes:
        stop_s: After one worker's failure the others hang in a collective operation: there is little to wait for.
        settle_s: A worker that speaks of a lost peer failed second: the first one may still be shutting down.
        drain_s: A child that outlives its worker keeps the pipe open for ever.
        flush_s: How long a reader that has stopped reading can delay the end after a stop.
    """

    stop_s: float = 5.0
    settle_s: float = 1.0
    drain_s: float = 1.0
    flush_s: float = 5.0


USUAL_LIMITS = Limits()


class Peers(Protocol):
    """The supervisors of the job's other nodes."""

    @property
    def fd(self) -> int | None:
        """A descriptor that can be read when one has said something; None without other nodes."""

    def poll(self) -> str | None:
        """Return why this node's workers must stop, if another node says so."""

    def tell_failure(self, cause: str) -> None:
        """Have the others stop their workers."""

    def share(self, samples: Sequence[Sample]) -> None:
        """Send samples to the node of rank 0; they can get lost."""

    def take_samples(self) -> Sequence[Sample]:
        """Return the other nodes' samples since the last call, on the node of rank 0."""


class Sampler(Protocol):
    """Samples of this node's hardware."""

    @property
    def fd(self) -> int:
        """A descriptor that can be read when there are samples to take."""

    def take(self) -> tuple[Sequence[Sample], Sequence[str]]:
        """Return the samples since the last call, and lines for the user."""


class WorkerLoop:
    """The state of one group of workers."""

    def __init__(
        self,
        console: Console,
        signals: SignalInbox,
        peers: Peers | None,
        *,
        grace_s: float,
        limits: Limits,
        loss: Loss,
        sampler: Sampler | None = None,
    ) -> None:
        self._console = console
        self._signals = signals
        self._peers = peers
        self._grace_s = grace_s
        self._limits = limits
        self._loss = loss
        self._workers: list[WorkerProcess] = []
        self._selector = selectors.DefaultSelector()
        self._selector.register(signals.fd, selectors.EVENT_READ)
        if peers is not None and peers.fd is not None:
            self._selector.register(peers.fd, selectors.EVENT_READ)
        self._sampler = sampler
        if sampler is not None:
            self._selector.register(sampler.fd, selectors.EVENT_READ)
        self._reading = True
        self._stopping: StopOrder | None = None
        self._kill_at: float | None = None
        self._killed = False

    def start(self, command: WorkerCommand) -> None:
        """Start a worker.

        Raises:
            TrainerError: It cannot be started.
        """
        self._workers.append(WorkerProcess(command, *self._console.begin(command)))

    def run(self) -> Outcome:
        """Wait until all workers have ended; return how."""
        while any(worker.open or worker.running for worker in self._workers):
            self._turn(self._next_deadline())
        ends = [worker.end for worker in self._workers]
        outcome = dataclasses.replace(decide(ends, stop=self._stopping), ends=ends)
        if outcome.first_failure is not None and (loss := self._loss()) is not None:
            # Whatever a worker says then is a consequence.
            return Outcome(FolderTakenError.exit_code, Failure(None, "", loss))
        return outcome

    def flush(self) -> None:
        """Give stdout the time it needs; after a stop, only a few seconds."""
        give_up_at = None
        while self._console.stdout.pending:
            if self._signals.stops and give_up_at is None:
                give_up_at = time.monotonic() + self._limits.flush_s
            if give_up_at is not None and (self._signals.stops > 1 or time.monotonic() >= give_up_at):
                return
            self._turn(give_up_at)

    def close(self) -> None:
        """End the processes that are left."""
        for worker in self._workers:
            worker.close()
        self._selector.close()

    # Waiting

    def _turn(self, deadline: float | None) -> None:
        """Wait until something happens or is due, and act on it."""
        self._listen()
        events = self._selector.select(None if deadline is None else max(0.0, deadline - time.monotonic()))
        now = time.monotonic()
        readable = [key.data for key, _ in events if isinstance(key.data, WorkerProcess)]
        self._show([(worker, self._read(worker, now)) for worker in readable])
        self._look(now)
        if any(key.fd == self._signals.fd for key, _ in events):
            self._receive(now)
            # The signals may be the only news of an end. Look again: an end that a stop has caused came after `now`.
            self._look(time.monotonic())
        due = [worker for worker in self._workers if self._drain_due(worker, now)]
        self._show([(worker, self._drain(worker, now)) for worker in due])
        if self._peers is not None and any(key.fd == self._peers.fd for key, _ in events):
            self._heed(self._peers.poll(), now)
            self._record(self._peers.take_samples())
        if self._sampler is not None and any(key.fd == self._sampler.fd for key, _ in events):
            samples, notes = self._sampler.take()
            for note in notes:
                self._console.say(note)
            self._record(samples)
        self._stop_if_one_has_failed(now)
        self._kill_if_due(now)

    def _look(self, now: float) -> None:
        for worker in self._workers:
            worker.look(now, drain_s=self._limits.drain_s)

    def _listen(self) -> None:
        """Listen to the workers unless stdout is behind, and to stdout if output waits for it."""
        limit = _BUFFER if self._stopping is None else _STOPPING_BUFFER
        self._reading = self._killed or len(self._console.stdout.pending) <= limit
        for worker in self._workers:
            self._select(worker.pipe, selectors.EVENT_READ, worker, wanted=worker.open and self._reading)
        self._select(self._console.stdout.fd, selectors.EVENT_WRITE, None, wanted=bool(self._console.stdout.pending))

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

    def _show(self, lines: Sequence[tuple[WorkerProcess, bytes]]) -> None:
        """Print the workers' lines, then write them to the run's files: their disk might not answer."""
        self._console.print([tagged for _, tagged in lines])
        for worker, tagged in lines:
            worker.log.write(tagged)

    def _read(self, worker: WorkerProcess, now: float) -> bytes:
        tagged = worker.read(now)
        return tagged + self._close_pipe(worker) if worker.at_end else tagged

    def _close_pipe(self, worker: WorkerProcess) -> bytes:
        self._select(worker.pipe, selectors.EVENT_READ, worker, wanted=False)
        return worker.close_pipe()

    def _drain_due(self, worker: WorkerProcess, now: float) -> bool:
        return worker.open and not worker.running and self._reading and now >= worker.drain_by

    def _drain(self, worker: WorkerProcess, now: float) -> bytes:
        """End the children of a worker that is gone, which hold its pipe; then close the pipe."""
        if not worker.children_killed:
            worker.kill()
            worker.children_killed, worker.drain_by = True, now + self._limits.drain_s
            return b""
        output = []
        for _ in range(64):  # more than a pipe holds; a child in another session could go on for ever
            output.append(self._read(worker, now))
            if worker.idle or worker.at_end:
                break
        if worker.open:
            output.append(self._close_pipe(worker))
        return b"".join(output)

    def _record(self, samples: Sequence[Sample]) -> None:
        """Bring samples to the worker of rank 0."""
        rank_0 = next((worker for worker in self._workers if worker.command.rank == 0), None)
        if rank_0 is not None:
            rank_0.tell(samples)
        elif self._peers is not None and samples:
            self._peers.share(samples)

    # Signals and ends

    def _receive(self, now: float) -> None:
        for number in self._signals.read():
            if number == signal.SIGUSR1:
                for worker in self._workers:
                    worker.signal(number)
            elif number == HAND_OVER and self._stopping is None and self._workers:
                self._console.say(f"a later pod of this job waits: the workers have {self._grace_s:g} s to stop")
                stop = StopOrder(now, "stopped for a later pod of this job", by_signal=True)
                self._stop(stop, within_s=self._grace_s)
            elif number in STOPS:
                name = signal.Signals(number).name
                if self._signals.stops > 1:
                    self._kill_at = now
                elif self._stopping is not None or not self._workers:
                    continue
                elif (loss := self._loss()) is not None:
                    self._stop(StopOrder(now, loss, by_signal=False), within_s=0.0)
                else:
                    self._console.say(f"received {name}: the workers have {self._grace_s:g} s to stop")
                    self._stop(StopOrder(now, f"stopped by {name}", by_signal=True), within_s=self._grace_s)

    def _heed(self, reason: str | None, now: float) -> None:
        """Stop the workers if another node says why."""
        if reason is not None and self._stopping is None and any(worker.running for worker in self._workers):
            self._console.say(f"{reason}; stopping the workers")
            self._stop(StopOrder(now, reason, by_signal=False, by_peer=True), within_s=self._limits.stop_s)

    def _stop(self, stop: StopOrder, *, within_s: float) -> None:
        self._stopping, self._kill_at = stop, stop.at + within_s
        for worker in self._workers:
            worker.end.told_to_stop = worker.running
            worker.signal(signal.SIGTERM)

    def _stop_due(self) -> float | None:
        """Return when the running workers must stop because another has ended, or None if none must."""
        if self._stopping is not None or not any(worker.running for worker in self._workers):
            return None
        return min((at for worker in self._workers if (at := self._end_counts_at(worker)) is not None), default=None)

    def _end_counts_at(self, worker: WorkerProcess) -> float | None:
        if worker.running or worker.end.returncode == 0:
            return None
        if worker.end.returncode == RESUMABLE:  # all workers agree on that; the last may still be saving
            return worker.end.ended_at + self._grace_s
        if worker.open:  # its last words have not been read yet
            return worker.end.ended_at + self._limits.drain_s
        return worker.end.ended_at + (self._limits.settle_s if worker.end.secondary else 0.0)

    def _stop_if_one_has_failed(self, now: float) -> None:
        due = self._stop_due()
        if due is None or now < due:
            return
        ended = [worker for worker in self._workers if not worker.running and worker.end.returncode != 0]
        first = min(ended, key=lambda worker: worker.end.ended_at)
        reason = None
        if all(worker.end.returncode == RESUMABLE for worker in ended):
            reason = f"still running {self._grace_s:g} s after {first.command} had stopped"
        else:
            # Its own words are the line above, and will be the last line too.
            how = f" ({first.end})" if first.end.reason is None else ""
            self._console.say(f"{first.command} has ended{how}; stopping the others")
            if self._peers is not None:
                self._peers.tell_failure(f"{first.command}: {first.end}")
        self._stop(StopOrder(now, reason, by_signal=False), within_s=self._limits.stop_s)

    def _kill_if_due(self, now: float) -> None:
        if self._kill_at is None or now < self._kill_at or self._killed:
            return
        self._killed = True
        running = [worker for worker in self._workers if worker.running]
        if running:
            ranks = ",".join(str(worker.command.rank) for worker in running)
            self._console.say(f"killing rank={ranks}: still running")
        for worker in running:
            worker.end.killed = True
            worker.kill()
