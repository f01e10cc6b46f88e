"""The checks of one place, and the processes that do them: one for each of its devices.

They run the checks one after the other, because the start of torch takes longer than most checks. If one hangs or dies,
all processes of the place are killed from outside, and others continue with the next check.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

from trainer.proof.advice import ADVICE
from trainer.proof.check import STOPPED_WHILE, WAITING, CheckOutcome, CheckPlace, ProofCheck, Result
from trainer.proof.check_process import CheckProcess, Folders
from trainer.topology.ports import listen_on_free_port, port_of

_PEERS_S = 5.0
"""How long the other processes of a place get after the first has died or failed: they say what they miss."""
_END_S = 10.0
"""How long processes that have done their checks get to end by themselves, so that the driver frees their devices: the
next processes open the same ones."""


class PlaceRun:
    """The checks of one place, and the processes that do them: one for each of its devices."""

    def __init__(self, place: CheckPlace, checks: Sequence[ProofCheck], folders: Folders, processes: int) -> None:
        """Prepare it.

        Args:
            place: Its rank is left open.
            checks: In this order.
            folders: For their files.
            processes: How many processes of all places share this machine's processors.
        """
        self.place = place
        self.closed = ""
        """Why the device does not open; empty if it does, or if no check has tried it."""
        self.model = ""
        """What the device calls itself, once it has opened."""
        self.deadline = 0.0
        """When the check that runs, or after the last one the processes, must have ended; of time.monotonic."""
        self._queue = list(checks)
        self._folders, self._sharing = folders, processes
        self._processes: list[CheckProcess] = []
        self._gate: ProofCheck | None = None
        """The check that has opened the device: new processes begin with it, and only its failure is news."""
        self._begun_at = 0.0

    @property
    def is_over(self) -> bool:
        """Whether there is a result of each check, and its processes have ended."""
        return not self._queue and not self._processes

    @property
    def descriptors(self) -> set[int]:
        """To wait for."""
        return set().union(*(process.descriptors for process in self._processes))

    def advance(self, now: float) -> Iterator[Result]:
        """Read what the processes say, yield new results, and start processes where there is no process."""
        while self._queue:
            if not self._processes:
                with _ranks(self.place) as places:
                    for place in places:
                        self._processes.append(CheckProcess(place, self._queue, self._folders, self._sharing))
                self._begin(now)
            outcome = self._outcome_of(self._queue[0], now)
            if outcome is None:
                return
            yield from self._conclude(self._queue.pop(0), outcome, now)
            self._begin(now)
        running = [process.read() for process in self._processes]
        if now >= self.deadline or not any(running):
            self.end()

    def stop(self) -> Iterator[Result]:
        """Kill the processes, and yield the result of the check that they have not finished."""
        processes = self._processes
        self.end()
        if processes and self._queue:
            outcome = CheckOutcome("unfinished", f"{STOPPED_WHILE} {_doings(processes)}")
            yield Result(self._queue[0].name, self.place.name, outcome, time.monotonic() - self._begun_at)

    def kill(self) -> None:
        """Kill the processes and their children."""
        for process in self._processes:
            process.kill()

    def end(self) -> None:
        """Kill the processes that still run, wait until they have ended, a bounded time, and forget them."""
        self.kill()
        for process in self._processes:
            process.end()
        self._processes = []

    def _begin(self, now: float) -> None:
        """Give the first check in the queue its time; without a check, the processes for their end."""
        self._begun_at, self.deadline = now, now + (self._queue[0].limit_s if self._queue else _END_S)

    def _outcome_of(self, check: ProofCheck, now: float) -> CheckOutcome | None:
        """Return the outcome of the check that runs; None if the processes still can finish it."""
        running = [process.read() for process in self._processes]
        outcomes = [process.outcomes.get(check.name) for process in self._processes]
        done = [outcome for outcome in outcomes if outcome is not None]
        failed = any(outcome.verdict in ("failed", "unfinished") for outcome in done)
        died = any(outcome is None and not alive for outcome, alive in zip(outcomes, running, strict=True))
        if len(done) < len(outcomes):
            if failed or died:
                self.deadline = min(self.deadline, now + _PEERS_S if any(running) else now)
            if now < self.deadline:
                return None
        # The peers of a process that has died fail because of it.
        ended = _combine(self._processes, check) if len(done) == len(outcomes) or (failed and not died) else None
        if ended is not None and not (failed and len(outcomes) > 1):
            return ended
        processes = self._processes
        self.end()  # the process group of a place may wait for ever after a failure
        return ended or _unfinished(processes, check)

    def _conclude(self, check: ProofCheck, outcome: CheckOutcome, now: float) -> Iterator[Result]:
        """Yield the result of a check that has ended; if it does not open the device, of all others too."""
        if check is not self._gate:
            yield Result(check.name, self.place.name, outcome, now - self._begun_at)
        if check.opens and outcome.verdict != "passed":
            again = " any more" if check is self._gate else ""
            self.closed = f"{self.place.name} does not open{again}: {outcome.measured}"
            yield from impossible(self._queue, self.place, self.closed)
            self._queue.clear()
            self.end()
        elif check.opens:
            self._gate, self.model = check, outcome.measured
        elif self._gate is not None and self._queue and not self._processes:
            self._queue.insert(0, self._gate)


def impossible(checks: Sequence[ProofCheck], place: CheckPlace, reason: str) -> Iterator[Result]:
    """Yield the results of checks that are not tried."""
    for check in checks:
        yield Result(check.name, place.name, CheckOutcome("impossible", reason), 0.0)


@contextmanager
def _ranks(place: CheckPlace) -> Iterator[list[CheckPlace]]:
    """Yield the place of each of its processes. On one machine they meet at a new port each time."""
    meets = len(place.devices) > 1 and not place.master_port
    with listen_on_free_port() if meets else nullcontext() as listener:
        if listener is not None:
            place = replace(place, master_port=port_of(listener), listener=listener.fileno())
        yield [replace(place, rank=rank, listener=None if rank else place.listener) for rank in place.own_ranks]


def _combine(processes: Sequence[CheckProcess], check: ProofCheck) -> CheckOutcome:
    """Return the outcome of a check at a place: the first rank's, or what the ranks say that have not passed it."""
    outcomes = {process: process.outcomes[check.name] for process in processes if check.name in process.outcomes}
    failed = {process: outcome for process, outcome in outcomes.items() if outcome.verdict != "passed"}
    if len(processes) == 1 or not failed:
        return outcomes[processes[0]]
    first = next(iter(failed.values()))
    words = {process: outcome.measured for process, outcome in failed.items()}
    return replace(first, measured=_by_device(words))


def _unfinished(processes: Sequence[CheckProcess], check: ProofCheck) -> CheckOutcome:
    """Return the outcome of a check whose processes were ended: which of them died, and what they were doing."""
    waiting = [process for process in processes if check.name not in process.outcomes]
    dead = [process for process in waiting if not process.was_killed]
    if not dead:
        absent = [process for process in waiting if not process.doing.startswith(WAITING)]
        text = f"no answer within {check.limit_s:g} s while {_doings(waiting)}: its process was ended"
        if 0 < len(absent) < len(waiting):
            text = f"{' '.join(process.device for process in absent)} did not arrive: {text}"
        return CheckOutcome("unfinished", text, f"at most {check.limit_s:g} s", _repeat(processes[0].place))
    words = {
        process: f"its process died ({process.death}) while {process.doing}"
        + (f"; its last words: {process.last_words}" if process.last_words else "")
        for process in dead
    }
    return CheckOutcome("unfinished", _by_device(words), "the process lives", _repeat(processes[0].place))


def _repeat(place: CheckPlace) -> str:
    """Return what to do about a check that did not finish."""
    return f"run this check again; if it ends like this once more, look at {ADVICE[place.kind].log}"


def _doings(processes: Sequence[CheckProcess]) -> str:
    return _by_device({process: process.doing for process in processes})


def _by_device(words: Mapping[CheckProcess, str]) -> str:
    """Return texts, each once with the devices that it is about; without them at a place of one process."""
    devices: dict[str, list[str]] = {}
    for process, text in words.items():
        devices.setdefault(text, []).append(process.device)
    if all(len(process.place.devices) < 2 for process in words):
        return "; ".join(devices)
    return "; ".join(f"{' '.join(names)}: {text}" for text, names in devices.items())
