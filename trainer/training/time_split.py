"""Where the wall time of each rank goes: data, host, device, peers, saving and evaluation. They add up to all of it.

A host only queues work for an accelerator, so a clock of the host cannot tell what the work waits for; a wait for the
device at each step would cost what it measures. So the host leaves marks in the device's queue, and reads the device's
times of all marks when it waits for the device anyway, at a log line. Where the device lags behind the host, it is
busy. Where it does not, it waits for the host, or with it for data.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import add
from typing import Any

from torch import nn

from trainer.devices.device import Device

PARTS = ("data", "host", "device", "peers", "saving", "evaluation")
PEERS_INDEX = PARTS.index("peers")
COMPUTE = "device"
"""Of a mark: the host has queued work since the mark before, or has done it itself on a CPU."""
MOST_EVENTS = 1024
"""Marks in a device's queue between two log lines; an NPU has a limited number of events."""
NO_LAG_S, NO_LAG = 200e-6, 0.05
"""A device that is behind by less than this, or by a smaller share of the host's time, keeps up with the host."""


@dataclass(frozen=True)
class Mark:
    """An end of some time: what the host did in it, and when it ended.

    Attributes:
        device_s: when the device had done all work queued before, on its own clock; None if it was not asked.
    """

    part: str
    host_s: float
    device_s: float | None = None


def split_time(begin: Mark, marks: Sequence[Mark], end_s: float) -> dict[str, float]:
    """Return the seconds of each part from `begin` to `end_s`.

    Args:
        begin: a moment at which the device had nothing to do.
        end_s: the host's time when the device had done everything.
    """
    parts = dict.fromkeys(PARTS, 0.0)
    waiting: list[Mark] = []
    last, lag_s = begin, 0.0
    for mark in marks:
        waiting.append(mark)
        if begin.device_s is None:
            parts[mark.part] += mark.host_s - last.host_s
        elif mark.device_s is None:
            continue  # its time belongs to the next mark that has one
        else:
            assert last.device_s is not None
            lag_before_s, lag_s = lag_s, (mark.device_s - begin.device_s) - (mark.host_s - begin.host_s)
            seconds, host_s = mark.device_s - last.device_s, mark.host_s - last.host_s
            keeps_up = max(lag_s, lag_before_s) <= max(NO_LAG_S, NO_LAG * host_s)
            _share(parts, last, waiting, seconds, busy=COMPUTE if not keeps_up else "host")
        last, waiting = mark, []
    rest_s = end_s - begin.host_s - sum(parts.values())
    if waiting:
        _share(parts, last, waiting, rest_s, busy=COMPUTE)
    else:
        parts["host"] += rest_s
    return parts


def _share(parts: dict[str, float], last: Mark, marks: Sequence[Mark], seconds: float, *, busy: str) -> None:
    """Add the device's time between marks to the parts, as the host's time is divided.

    Args:
        busy: the part of queued work.
    """
    whole = marks[-1].host_s - last.host_s
    for mark in marks:
        share = (mark.host_s - last.host_s) / whole if whole > 0 else 1 / len(marks)
        parts[busy if mark.part == COMPUTE else mark.part] += seconds * share
        last = mark


@dataclass(frozen=True)
class RankTimes:
    """The seconds of each part on each rank, in the order of `PARTS`."""

    rows: tuple[tuple[float, ...], ...] = ()

    @classmethod
    def of_sums(cls, microseconds: Sequence[int]) -> "RankTimes":
        """Return the times from one number for each part of each rank, one rank after the other."""
        size = len(PARTS)
        rows = (microseconds[begin : begin + size] for begin in range(0, len(microseconds), size))
        return cls(tuple(tuple(value / 1e6 for value in row) for row in rows))

    def __add__(self, other: "RankTimes") -> "RankTimes":
        if len(self.rows) != len(other.rows):  # one is empty, or the run has another number of devices by now
            return other if other.rows else self
        pairs = zip(self.rows, other.rows, strict=True)
        return RankTimes(tuple(tuple(map(add, one, two)) for one, two in pairs))

    @property
    def own_s(self) -> list[float]:
        """Seconds in which each rank did not wait for the others."""
        return [sum(row) - row[PEERS_INDEX] for row in self.rows]

    @property
    def slowest(self) -> int | None:
        """The rank for which the others wait; None if there are no others."""
        return self.own_s.index(max(self.own_s)) if len(self.rows) > 1 else None

    @property
    def slower(self) -> float | None:
        """By how much the slowest rank is slower than the others' median, in percent."""
        if self.slowest is None:
            return None
        others = [own for rank, own in enumerate(self.own_s) if rank != self.slowest]
        usual = statistics.median(others)
        return 100 * (max(self.own_s) / usual - 1) if usual > 0 else None

    @property
    def parts(self) -> dict[str, float]:
        """The job's seconds of each part: the mean of the ranks without the slowest one, for which they wait."""
        rows = [row for rank, row in enumerate(self.rows) if rank != self.slowest]
        return {name: statistics.fmean(row[number] for row in rows) for number, name in enumerate(PARTS)}

    @property
    def limits(self) -> dict[str, str | int | float | None]:
        """The part with the most time, and the slowest rank with its own largest part; for lines and records."""
        slowest, parts = self.slowest, self.parts
        return {
            "limit": max(parts, key=lambda name: parts[name]),
            "slowest_rank": slowest,
            "slower": None if self.slower is None else round(self.slower, 1),
            "slowest_part": None if slowest is None else self.largest(slowest, without="peers"),
        }

    def largest(self, rank: int, *, without: str = "") -> str:
        """Return the part in which a rank spends most of its time."""
        row = self.rows[rank]
        return max((name for name in PARTS if name != without), key=lambda name: row[PARTS.index(name)])


@dataclass
class RecentTimes:
    """The ranks' times since the last line about them, and each rank's images in it."""

    times: RankTimes = field(default_factory=RankTimes)
    images: float = 0.0
    _images_after: float = 0.0

    def add(self, times_before: RankTimes, images: float) -> None:
        """Count the window before the last one by its times, and remember the images of the last one for later."""
        if any(map(any, times_before.rows)):
            self.times += times_before
            self.images += self._images_after
        self._images_after = images

    def take(self) -> dict[str, Any]:
        """Return what limits the job, and for each rank its own images/s and its largest part; then begin again.

        Its own speed counts neither its waiting for others, nor saving and evaluating. The fields are empty before the
        second window.
        """
        times, images = self.times, self.images
        self.times, self.images = RankTimes(), 0.0
        if not times.rows:
            return {}
        steps_s = (sum(row[PARTS.index(name)] for name in ("data", "host", COMPUTE)) for row in times.rows)
        rates = (images / seconds if seconds > 0 else 0.0 for seconds in steps_s)
        waits = (times.largest(rank) for rank in range(len(times.rows)))
        return {**times.limits, "rates": " ".join(f"{rate:.4g}" for rate in rates), "waits": " ".join(waits)}


class StepClock:
    """Takes the times of this rank. The time between two marks belongs to one part."""

    def __init__(self, runtime: Device, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._runtime, self._clock = runtime, clock
        self._events: list[Any] = []
        """Used again in each window: a new event costs more than its record."""
        self._times: list[tuple[str, float]] = []
        self.unsent: list[float] = []
        """Seconds of each part of which the other ranks do not know yet."""
        self.restart()

    def restart(self) -> None:
        """Count from now, when the device has nothing to do; what came before belongs to no part."""
        self._times.clear()
        self._record(0)
        self._began_s = self._clock()

    def mark(self, part: str) -> None:
        """Note that the time since the mark before belongs to `part`."""
        self._times.append((part, self._clock()))
        if len(self._times) < MOST_EVENTS:
            self._record(len(self._times))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time inside to a part, and what came before to the host."""
        self.mark("host")
        yield
        self.mark(name)

    def mark_gradients(self, network: nn.Module) -> None:
        """Have the end of each backward pass marked, from which on a rank waits for the gradients of its peers.

        The first layer has its gradient last.
        """
        first = next(iter(network.parameters()))
        first.register_post_accumulate_grad_hook(lambda _gradient: self.mark(COMPUTE))

    def end_window(self) -> None:
        """Split the time since the last window; the host has just waited for the device."""
        end_s, times = self._clock(), self._times
        marks = [Mark(part, host_s, self._device_s(number)) for number, (part, host_s) in enumerate(times, 1)]
        parts = split_time(Mark("host", self._began_s, self._device_s(0)), marks, end_s)
        unsent = self.unsent or [0.0] * len(PARTS)
        self.unsent = [before + parts[name] for before, name in zip(unsent, PARTS, strict=True)]
        self.restart()
        self._began_s = end_s

    def take_unsent(self) -> list[float]:
        """Return the seconds of each part up to the last window's end, each second once."""
        unsent, self.unsent = self.unsent, []
        return unsent or [0.0] * len(PARTS)

    def _record(self, number: int) -> None:
        if number == len(self._events):
            self._events.append(self._runtime.new_event())
        if (event := self._events[number]) is not None:
            event.record()

    def _device_s(self, number: int) -> float | None:
        """Return the device's time of a mark in seconds after the window's beginning."""
        if self._events[0] is None or number >= MOST_EVENTS:
            return None
        return float(self._events[0].elapsed_time(self._events[number])) / 1000
