"""How long a run will still take, and how sure that is: durations go in, an estimate comes out.

A plain mean of the past is wrong where runs are not even: the first steps of a process and of an epoch are slow,
another job slows the storage down for a while, a save or an evaluation takes minutes. So each kind of work has its own
figure, and a slow stretch counts only as far as stretches like it are usual.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

MOST_BLOCKS = 32
"""Blocks of steps that are remembered; then two become one, so that the memory covers the whole run."""
HALF_LIFE = 0.4
"""Of the run so far: steps that lie further back by this share weigh half."""
USUAL = 1.25
"""A block counts as at most this times faster or slower than the median."""
REMEMBERED = 8
"""Evaluations and starts of epochs that are remembered."""
EVALUATION_SHARE, EVALUATION_SHARES = 0.4, (0.2, 1.2)
"""The time of an image in an evaluation as a share of its time in training, before the first one, and its bounds: a
forward pass is a third of the arithmetic of a step, but reading the image takes the same."""
SOONER, LATER = 0.03, 0.1
"""Shares of the time left that stay uncertain however even the past was: new disturbances only make a run slower."""
EXPECTED_LATER = (LATER - SOONER) / 2
"""The middle of both, by which a run is expected to end later than its usual times say."""

SAY_S, SAY_PERCENT = 30.0, 5.0
"""The time left is printed after this time, or earlier after this share of the work."""


@dataclass(frozen=True)
class Work:
    """Work of a run: steps, epochs that begin, and epochs that end with an evaluation and a checkpoint."""

    steps: int
    starts: int
    ends: int

    def __sub__(self, other: "Work") -> "Work":
        return Work(self.steps - other.steps, self.starts - other.starts, self.ends - other.ends)


@dataclass(frozen=True)
class TimeLeft:
    """Seconds of work that a run has left, and the share of its work that is done, in percent.

    The true value lies between `low_s` and `high_s` in nine of ten runs. Time in which no process works on the run, as
    in a queue, is not part of it.
    """

    done: float
    seconds: float
    low_s: float
    high_s: float


@dataclass
class Block:
    """Consecutive steps and their seconds."""

    steps: int
    seconds: float


@dataclass
class RunPace:
    """The times of a run so far, from which the rest is estimated. It is saved in checkpoints.

    Attributes:
        block_steps: steps after which a block is complete.
        saving_s: seconds in which steps waited for checkpoints.
        starts: seconds by which the first steps of an epoch were slower than usual.
        restarts: the same for the first steps of a process.
        ends: seconds from an epoch's last step to the next epoch.
    """

    blocks: list[Block] = field(default_factory=list)
    block_steps: int = 1
    saving_s: float = 0.0
    starts: list[float] = field(default_factory=list)
    restarts: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)

    def add_steps(self, steps: int, seconds: float) -> None:
        """Count steps of the middle of an epoch, without the time of saves."""
        if self.blocks and self.blocks[-1].steps < self.block_steps:
            self.blocks[-1].steps += steps
            self.blocks[-1].seconds += seconds
        else:
            self.blocks.append(Block(steps, seconds))
        if len(self.blocks) > MOST_BLOCKS:
            pairs = zip(self.blocks[::2], self.blocks[1::2], strict=False)
            odd = self.blocks[-1:] if len(self.blocks) % 2 else []
            self.blocks = [Block(a.steps + b.steps, a.seconds + b.seconds) for a, b in pairs] + odd
            self.block_steps *= 2

    def add_first_steps(self, steps: int, seconds: float, *, of_process: bool) -> None:
        """Count the first steps of an epoch, or of a process."""
        usual = self._step_s()
        if usual is None:
            # The first steps of all: how slow they are is known when others follow.
            usual = 0.0
        excess = max(0.0, seconds - steps * usual)
        _remember(self.restarts if of_process else self.starts, excess)

    def add_save(self, seconds: float) -> None:
        """Count the time in which steps waited for a checkpoint."""
        self.saving_s += seconds

    def add_end(self, seconds: float) -> None:
        """Count the time after an epoch's last step."""
        _remember(self.ends, seconds)

    def time_left(self, done: Work, total: Work, *, images_per_step: float, images: int) -> TimeLeft | None:
        """Return the time that the rest of `total` takes; None before any step is known.

        Args:
            images_per_step: images of the whole job in one step.
            images: images of one evaluation.
        """
        if self._step_s() is None:
            return None
        low, usual, high = zip(*self._costs(images / images_per_step), strict=True)
        left = total - done
        seconds = _sum(left, usual)
        whole = _sum(done, usual) + seconds
        return TimeLeft(
            done=100 * (1 - seconds / whole) if whole > 0 else 100.0,
            seconds=(1 + EXPECTED_LATER) * seconds,
            low_s=(1 - SOONER) * _sum(left, low),
            high_s=(1 + LATER) * _sum(left, high) + self._restarts_ahead_s(left.steps),
        )

    def _costs(self, evaluation_steps: float) -> Sequence[tuple[float, float, float]]:
        """Return the lowest, usual and highest seconds of a step, of an epoch's start, and of its end."""
        step_s = self._step_s() or 0.0
        rates = self._rates()
        saving_s = self.saving_s / max(1, sum(block.steps for block in self.blocks))
        median = _quantile(rates, 0.5)
        # A run can also become as fast or as slow again as at its beginning.
        whole = [(block.seconds / block.steps, float(block.steps)) for block in self.blocks]
        lowest = min(_quantile(rates, 0.2), _quantile(whole, 0.2), step_s)
        highest = max(_quantile(rates, 0.8), _quantile(whole, 0.8), step_s, median)
        # Before a second epoch has begun, its start is perhaps as slow as the start of the process.
        starts = self.starts or [0.0, *self.restarts[-1:]]
        if self.ends:
            end = (min(self.ends), statistics.median(self.ends), max(self.ends))
        else:
            one = evaluation_steps * step_s
            end = (EVALUATION_SHARES[0] * one, EVALUATION_SHARE * one, EVALUATION_SHARES[1] * one)
        start = (min(starts), statistics.median_low(starts), max(starts))
        return [(lowest + saving_s, step_s + saving_s, highest + saving_s), start, end]

    def _restarts_ahead_s(self, steps_left: int) -> float:
        """Return the time of slow first steps if processes go on to restart as often as so far."""
        steps = sum(block.steps for block in self.blocks)
        again = self.restarts[1:]
        return sum(again) * steps_left / steps if again and steps else 0.0

    def _step_s(self) -> float | None:
        """Return the usual seconds of a step: the recent ones count most, unusual ones only in part."""
        rates = self._rates()
        if not rates:
            return None
        median = _quantile(rates, 0.5)
        weight = math.fsum(weight for _, weight in rates)
        return math.fsum(min(max(rate, median / USUAL), median * USUAL) * weight for rate, weight in rates) / weight

    def _rates(self) -> list[tuple[float, float]]:
        """Return seconds of a step and weight of each block."""
        half_life = HALF_LIFE * sum(block.steps for block in self.blocks)
        rates, age = [], 0.0
        for block in reversed(self.blocks):
            weight = block.steps * 0.5 ** ((age + block.steps / 2) / half_life)
            rates.append((block.seconds / block.steps, weight))
            age += block.steps
        return rates


class Stopwatch:
    """Takes the times of this process for a run's `RunPace`, and says when the time left is worth a line.

    A process begins with `begin_steps`; the end of an epoch is the time from `end_steps` to the next `begin_steps`.
    """

    def __init__(self, pace: RunPace, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._pace, self._clock = pace, clock
        self._of_process, self._first = True, True
        self._saved_s = 0.0
        self._ended_at: float | None = None
        self._said: tuple[float, float] | None = None

    def begin_steps(self) -> None:
        """Note that an epoch's steps begin."""
        if self._ended_at is not None:
            self._pace.add_end(self._clock() - self._ended_at)
        self._first, self._ended_at = True, None

    def add_steps(self, steps: int, seconds: float, *, whole_epoch: bool = False) -> None:
        """Count steps and their wall time, with the saves in it.

        Args:
            whole_epoch: they are all steps of an epoch: then no others show how slow the first ones are.
        """
        seconds, self._saved_s = seconds - self._saved_s, 0.0
        if self._of_process or (self._first and not whole_epoch):
            self._pace.add_first_steps(steps, seconds, of_process=self._of_process)
        else:
            self._pace.add_steps(steps, seconds)
        self._of_process = self._first = False

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Count the time inside as a save, on which steps wait."""
        began = self._clock()
        yield
        seconds = self._clock() - began
        self._saved_s += seconds
        self._pace.add_save(seconds)

    def end_steps(self) -> None:
        """Note that an epoch's last step is done, with an evaluation and a checkpoint to come."""
        self._ended_at = self._clock()

    def is_worth_a_line(self, left: TimeLeft) -> bool:
        """Return whether to print the time left now: the first time, and then rarely."""
        now = self._clock()
        if self._said is not None and now - self._said[0] < SAY_S and left.done - self._said[1] < SAY_PERCENT:
            return False
        self._said = now, left.done
        return True


def _sum(work: Work, costs: Sequence[float]) -> float:
    return work.steps * costs[0] + work.starts * costs[1] + work.ends * costs[2]


def _remember(values: list[float], value: float) -> None:
    values.append(value)
    del values[:-REMEMBERED]


def _quantile(rates: Sequence[tuple[float, float]], share: float) -> float:
    """Return the smallest rate below or at which this share of the weight lies."""
    rest = share * math.fsum(weight for _, weight in rates)
    for rate, weight in sorted(rates):
        rest -= weight
        if rest <= 0:
            return rate
    return max(rate for rate, _ in rates)
