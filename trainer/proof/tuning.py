"""Find the settings with which the step is fastest: one switch after the other, each from the best settings so far.

A switch's values and the best settings so far are timed in turns. A value is refused if its run fails or if it changes
losses; it is dropped if it brings nothing. At the end the chosen settings are timed against the defaults once more,
because each was chosen next to the ones before it.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from trainer.proof.gains import MOST_ROUNDS, Gain, estimate_gain, is_faster, is_not_worth_it
from trainer.proof.switches import Switch
from trainer.proof.timing import CheckedRuns, Refusal, RunSettings, RunTiming, TimeRun

RISK = 0.05
"""That a value is chosen which brings nothing; all values of all switches share it."""
REPEATS = 3
"""Runs that show by how much the losses of the defaults differ."""
_TOGETHER = "all chosen"

ValueVerdict = Literal["chosen", "brings nothing", "slower than another", "unclear", "refused"]


@dataclass(frozen=True)
class TriedValue:
    """A value of a switch, and what has become of it."""

    value: str
    verdict: ValueVerdict
    gain: Gain | None = None
    reason: str = ""

    def __str__(self) -> str:
        gain = "" if self.gain is None else str(self.gain)
        return ", ".join(filter(None, (f"{self.value}: {self.verdict}", self.reason, gain)))


@dataclass(frozen=True)
class TriedSwitch:
    """A switch, and what has become of its values."""

    switch: Switch
    values: tuple[TriedValue, ...]

    @property
    def chosen(self) -> TriedValue | None:
        """The value that is faster than the settings before; None if the switch stays as it is."""
        return next((tried for tried in self.values if tried.verdict == "chosen"), None)


class Tuning:
    """The best settings so far; a TrainerError from a method says that they do not run any more."""

    def __init__(self, time_run: TimeRun, switches: Sequence[Switch]) -> None:
        self.best: dict[str, str] = {}
        self._runs = CheckedRuns(time_run)
        self._switches = switches
        self._risk = RISK / max(1, sum(len(switch.values) for switch in switches))

    def repeat_defaults(self) -> str:
        """Learn by how much losses differ from run to run, and return it in words."""
        for _ in range(REPEATS):
            self._runs.time_baseline({})
        return str(self._runs.spread)

    def try_switches(self) -> Iterator[TriedSwitch]:
        """Try one switch after the other, and yield each when `best` has its chosen value."""
        for switch in self._switches:
            rivals = {value: {**self.best, switch.name: value} for value in switch.values}
            tried = TriedSwitch(switch, _Race(self._runs, self.best, rivals, self._risk).run())
            if tried.chosen is not None:
                self.best[switch.name] = tried.chosen.value
            yield tried

    def confirm(self) -> TriedValue:
        """Compare the best settings with the defaults in new rounds; without a clear gain, forget them."""
        (tried,) = _Race(self._runs, {}, {_TOGETHER: dict(self.best)}, RISK).run()
        if tried.verdict != "chosen":
            self.best.clear()
        return tried


class _Race:
    """Rounds in which some settings run against a baseline, until one is chosen or none is left."""

    def __init__(
        self, runs: CheckedRuns, baseline: RunSettings, rivals: Mapping[str, RunSettings], risk: float
    ) -> None:
        self._runs, self._baseline, self._rivals, self._risk = runs, baseline, rivals, risk
        self._logs: dict[str, list[float]] = {name: [] for name in rivals}
        """Of the rivals that are left, how many times as fast as the baseline each was in each round."""
        self._tried: dict[str, TriedValue] = {}

    def run(self) -> tuple[TriedValue, ...]:
        """Return what has become of each rival, in their order."""
        for number in range(MOST_ROUNDS):
            self._time_round(backwards=number % 2 == 1)
            self._drop_the_slow()
            if not self._logs or (len(self._logs) == 1 and is_faster(self._logs[self._leader], self._risk)):
                break
        if self._logs and is_faster(self._logs[self._leader], self._risk):
            self._end(self._leader, "chosen")
        for name in tuple(self._logs):
            self._end(name, "unclear")
        return tuple(self._tried[name] for name in self._rivals)

    @property
    def _leader(self) -> str:
        return max(self._logs, key=lambda name: statistics.fmean(self._logs[name]))

    def _time_round(self, *, backwards: bool) -> None:
        """Time each setting once. Every other round goes backwards, so that a steady drift cancels out."""
        baseline, speeds = 0.0, dict[str, float]()
        turns = [None, *self._logs]
        for name in reversed(turns) if backwards else turns:
            if name is None:
                baseline = self._runs.time_baseline(self._baseline).images_per_s
                continue
            match self._runs.time_rival(self._rivals[name]):
                case RunTiming(images_per_s):
                    speeds[name] = images_per_s
                case Refusal(reason):
                    self._end(name, "refused", reason)
        for name, speed in speeds.items():
            self._logs[name].append(math.log(speed / baseline))

    def _drop_the_slow(self) -> None:
        for name, logs in tuple(self._logs.items()):
            if is_not_worth_it(logs):
                self._end(name, "brings nothing")
        if not self._logs:
            return
        leader = self._logs[self._leader]
        for name, logs in tuple(self._logs.items()):
            if logs is not leader and is_not_worth_it([own - best for own, best in zip(logs, leader, strict=True)]):
                self._end(name, "slower than another")

    def _end(self, name: str, verdict: ValueVerdict, reason: str = "") -> None:
        logs = self._logs.pop(name)
        gain = estimate_gain(logs, self._risk) if logs else None
        self._tried[name] = TriedValue(name, verdict, gain, reason)
