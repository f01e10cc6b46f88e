"""The result of a timed run, and the comparison of its losses with the losses of the defaults."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trainer.shared.errors import TrainerError

RunSettings = Mapping[str, str]
"""Options of the trainer by field name, and variables of the environment, with values in place of the defaults."""
Losses = tuple[float | None, ...]
"""Of each step; None where it was not finite."""
_FACTOR = 10
"""Three repetitions do not show the largest difference: with 3, one setting of six would be refused wrongly."""


@dataclass(frozen=True)
class RunTiming:
    """What a run has measured."""

    images_per_s: float
    losses: Losses


@dataclass(frozen=True)
class Refusal:
    """Why a setting is out of the question, in one line."""

    reason: str


TimeRun = Callable[[RunSettings], RunTiming | Refusal]
"""Trains some steps with these settings; a run that fails is a refusal."""


class LossSpread:
    """The losses of runs with the defaults, and by how much they differ."""

    def __init__(self) -> None:
        self._runs: dict[Losses, None] = {}
        """Without repetitions, in the order of their first runs."""

    def add(self, losses: Losses) -> None:
        """Learn from another run with the defaults."""
        self._runs[losses] = None

    def __str__(self) -> str:
        return "bit-equal" if self._is_zero else "different from run to run"

    @property
    def _is_zero(self) -> bool:
        return len(self._runs) == 1

    def change(self, losses: Losses) -> str:
        """Return how `losses` differ from the losses of the defaults by more than a repetition; empty if they do not.

        Differences grow from step to step, so each step is compared with the largest difference up to it.
        """
        largest = 0.0
        for step, (loss, *usual) in enumerate(zip(losses, *self._runs, strict=False), start=1):
            largest = max([largest, *(_difference(one, two) for one in usual for two in usual)])
            difference = min(_difference(loss, one) for one in usual)
            if difference > _FACTOR * largest:
                repeated = "are bit-equal" if self._is_zero else f"differ by {largest:.1e} at most"
                return f"changes the loss of step {step} by {difference:.1e}; repetitions of the defaults {repeated}"
        return ""


def _difference(one: float | None, two: float | None) -> float:
    """Return the relative difference of two losses; a loss that is not finite equals only another such loss."""
    if one is None or two is None:
        return 0.0 if one is two else math.inf
    return 0.0 if one == two else abs(one - two) / max(abs(one), abs(two))


class CheckedRuns:
    """Runs whose losses are compared with the losses of the defaults."""

    def __init__(self, time_run: TimeRun) -> None:
        self._time_run = time_run
        self.spread = LossSpread()

    def time_baseline(self, settings: RunSettings) -> RunTiming:
        """Time settings that have run before. A failure may pass, so there is a second try.

        Raises:
            TrainerError: the second try fails too, so nothing can be compared any more.
        """
        timing = self._time_run(settings)
        if isinstance(timing, Refusal):
            timing = self._time_run(settings)
        if isinstance(timing, Refusal):
            raise TrainerError(f"a run with {join_settings(settings)} fails twice: {timing.reason}")
        if not settings:
            self.spread.add(timing.losses)
        return timing

    def time_rival(self, settings: RunSettings) -> RunTiming | Refusal:
        """Time other settings, and refuse them if they fail or change losses."""
        timing = self._time_run(settings)
        if isinstance(timing, RunTiming) and (change := self.spread.change(timing.losses)):
            return Refusal(change)
        return timing


def join_settings(settings: RunSettings) -> str:
    """Return settings in words."""
    return " ".join(f"{name}={value}" for name, value in settings.items()) or "the defaults"
