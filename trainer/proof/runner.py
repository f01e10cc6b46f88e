"""Run checks in separate processes, each in a bounded time: a device that hangs its process costs one result.

The checks of a scope run at all its places (`places.py`), each by a `PlaceRun`; then their results are compared.
"""

import itertools
import select
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from trainer.proof.check import CheckPlace, ProofCheck, Result
from trainer.proof.check_process import Folders
from trainer.proof.comparison import best_rates
from trainer.proof.place_run import PlaceRun, impossible
from trainer.proof.places import NodeDevices, obstacle_to, obstacle_to_collectives, places_of
from trainer.supervisor.signals import STOPS, SignalInbox

_TURNS = 3
"""How often a place that stands out is measured again, unless its rates then fit the others'."""


def run_checks(
    devices: NodeDevices, checks: Sequence[ProofCheck], folders: Folders, report: Callable[[Result], None]
) -> int | None:
    """Run the checks in their order, a group with the same scope at all places at once.

    Args:
        devices: The ones that take part.
        checks: For their kind of device.
        folders: For files of checks.
        report: Called with each result as soon as there is one.

    Returns:
        The signal that has ended the checks early; None if all have run.
    """
    whole = devices.place(devices.numbers)
    with _signals() as inbox, _scratch(folders):
        for (scope, _), group in itertools.groupby(checks, key=lambda check: (check.scope, check.starts_runs)):
            of_scope = list(group)
            if reason := obstacle_to(scope, devices):
                for result in impossible(of_scope, whole, reason):
                    report(result)
            run = _ScopeRun(places_of(scope, devices), of_scope, folders, inbox, report)
            if stop := run.run():
                return stop
            opened = [number for number in devices.numbers if (number,) not in run.closed]
            devices = replace(devices, numbers=opened, model=run.model or devices.model)
    return None


def run_check_at(
    place: CheckPlace, check: ProofCheck, folders: Folders, report: Callable[[Result], None], *, model: str
) -> int | None:
    """Run a check at a place of several nodes, by the processes of this one; return the signal that has ended it.

    Args:
        place: With this node's number.
        check: Of the scope `all`.
        folders: For files of checks.
        report: Called with the result.
        model: The name that the devices of this node give themselves.
    """
    nodes = [
        NodeDevices(place.kind, [device for _, device in group], node, model=model)
        for node, group in itertools.groupby(zip(place.nodes, place.devices, strict=True), key=lambda pair: pair[0])
    ]
    if reason := obstacle_to_collectives(*nodes):
        for result in impossible([check], place, reason):
            report(result)
        return None
    with _signals() as inbox, _scratch(folders):
        return _run([PlaceRun(place, [check], folders, len(place.own_ranks))], inbox, report)


@contextmanager
def _scratch(folders: Folders) -> Iterator[None]:
    try:
        folders.scratch.mkdir(mode=0o700)
        yield
    finally:
        shutil.rmtree(folders.scratch, ignore_errors=True)


class _ScopeRun:
    """The checks of a scope at all its places, and the comparison of their results."""

    def __init__(
        self,
        turns: Sequence[Sequence[CheckPlace]],
        checks: Sequence[ProofCheck],
        folders: Folders,
        inbox: SignalInbox,
        report: Callable[[Result], None],
    ) -> None:
        self.closed: set[tuple[int, ...]] = set()
        """The places whose device does not open."""
        self.model = ""
        """What a device that has opened calls itself; empty if no check has opened one."""
        self._turns, self._checks, self._folders, self._inbox, self._report = turns, checks, folders, inbox, report
        self._places = sum(map(len, turns))
        self._sharing = max((sum(len(place.devices) or 1 for place in places) for places in turns), default=1)
        """How many processes of all places share this machine's processors; alone, one gets no more, to be compared."""
        self._compared = {check.name: check for check in checks if check.compare is not None}
        self._held: dict[str, list[Result]] = {name: [] for name in self._compared}
        """The results that wait for the ones of other places, by the check."""
        self._best: dict[tuple[str, str], Result] = {}
        """The results of timed checks by check and place, each with its best rates of all turns."""

    def run(self) -> int | None:
        """Run everything; return the signal that has ended it, or None."""
        stop = self._run(self._turns, self._checks, self._take) or self._measure_again()
        for name, results in self._held.items():
            # An accusation needs all turns.
            best = results if stop else [self._best.get((name, result.place), result) for result in results]
            for first, compared in zip(results, _compare(self._compared[name], best), strict=True):
                self._report(first if stop or compared.outcome.verdict == "passed" else compared)
        return stop

    def _take(self, result: Result) -> None:
        """Report a result; one that is compared, when all places have one, if then nothing stands out."""
        if result.check not in self._compared:
            return self._report(result)
        held = self._held[result.check]
        held.append(result)
        if len(held) == self._places and _compare(self._compared[result.check], held) == held:
            self._held[result.check] = []
            for one in held:
                self._report(one)
        return None

    def _measure_again(self) -> int | None:
        """Repeat timed checks in which a place stands out, at one place after the other; return a signal to stop.

        A disturbance lowers rates, and never raises them. So the best rates of some turns tell more than any single
        turn: a slow device is slow in each of them, and a disturbed device is not.
        """
        self._best = {(name, result.place): result for name, results in self._held.items() for result in results}
        alone = [[place] for places in self._turns for place in places]
        opening = [check for check in self._checks if check.opens]
        for _ in range(_TURNS):
            unclear = [check for check in self._compared.values() if check.is_timed and self._stands_out(check)]
            if unclear and (stop := self._run(alone, [*opening, *unclear], self._improve)):
                return stop
        return None

    def _stands_out(self, check: ProofCheck) -> bool:
        best = [self._best[check.name, result.place] for result in self._held[check.name]]
        compared = _compare(check, best)
        # A result that did not finish gets the name of the cause, and needs no other turn.
        return any(one.outcome.verdict != other.outcome.verdict for one, other in zip(best, compared, strict=True))

    def _improve(self, result: Result) -> None:
        before = self._best.get((result.check, result.place))
        if before is not None:
            self._best[result.check, result.place] = best_rates(before, result)

    def _run(
        self, turns: Sequence[Sequence[CheckPlace]], checks: Sequence[ProofCheck], take: Callable[[Result], None]
    ) -> int | None:
        for places in turns:
            runs = [PlaceRun(place, checks, self._folders, self._sharing) for place in places]
            stop = _run(runs, self._inbox, take)
            self.closed |= {run.place.devices for run in runs if run.closed}
            self.model = next((run.model for run in runs if run.model), self.model)
            if stop:
                return stop
        return None


def _compare(check: ProofCheck, results: Sequence[Result]) -> list[Result]:
    return list(results) if check.compare is None else check.compare(results)


def _run(runs: Sequence[PlaceRun], inbox: SignalInbox, report: Callable[[Result], None]) -> int | None:
    """Run the checks of places at once; return the signal that has ended them, or None."""
    try:
        while not all(run.is_over for run in runs):
            for run in runs:
                for result in run.advance(time.monotonic()):
                    report(result)
            if stop := _wait(runs, inbox):
                for run in runs:
                    run.kill()
                for result in itertools.chain.from_iterable(run.stop() for run in runs):
                    report(result)
                return stop
    finally:
        for run in runs:
            run.kill()
        for run in runs:
            run.end()
    return None


def _wait(runs: Sequence[PlaceRun], inbox: SignalInbox) -> int | None:
    """Wait for a message, the end of a process, a deadline or a signal; return the signal if it is one to stop."""
    poll = select.poll()
    for descriptor in (inbox.fd, *itertools.chain.from_iterable(run.descriptors for run in runs)):
        poll.register(descriptor, select.POLLIN)
    deadlines = [run.deadline for run in runs if not run.is_over]
    if deadlines:
        poll.poll(max(0.0, min(deadlines) - time.monotonic()) * 1000 + 1)
    return next((number for number in inbox.read() if number in STOPS), None)


@contextmanager
def _signals() -> Iterator[SignalInbox]:
    inbox = SignalInbox()
    inbox.open()
    try:
        yield inbox
    finally:
        inbox.close()
