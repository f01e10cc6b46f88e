"""Runs with the disturbances that real ones have, and such runs in virtual time: what a forecast is tested on."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

from trainer.training.time_left import RunPace, TimeLeft, Work

WINDOW = 10
"""Steps between two log lines."""
SAVE_EVERY_S = 600.0


@dataclass(frozen=True)
class Forecast:
    """A forecast, and the time that the run then took."""

    said: TimeLeft
    true_s: float

    @property
    def error(self) -> float:
        """The relative error."""
        return self.said.seconds / self.true_s - 1

    @property
    def holds(self) -> bool:
        """Whether the true time lies in the interval."""
        return self.said.low_s <= self.true_s <= self.said.high_s

    @property
    def width(self) -> float:
        """The interval's width as a share of the forecast."""
        return (self.said.high_s - self.said.low_s) / self.said.seconds


@dataclass(frozen=True)
class Size:
    """How large the runs are that are drawn.

    Attributes:
        shapes: numbers of epochs and of the steps of each.
        batches: images of the whole job in one step.
        steps_s: the shortest and the longest time of all steps, in seconds.
    """

    shapes: Sequence[tuple[int, int]] = ((1, 5000), (3, 1000), (10, 500), (30, 500), (90, 200))
    batches: Sequence[int] = (64, 256)
    steps_s: tuple[float, float] = (4 * 3600.0, 100 * 3600.0)

    @property
    def scale(self) -> float:
        """The share of the times of runs of hours that all other times have: a usual run lies in the middle."""
        return math.sqrt(math.prod(self.steps_s) / math.prod(Size.steps_s))


class DisturbedRun:
    """The costs of a run of a network on some devices, all drawn from `seed`.

    Steps are noisy. The first steps of each process compile kernels, the first steps of each epoch wait for new loader
    processes. Another job slows the steps down from time to time, or for good from some early moment on. Checkpoints
    block the loop, and evaluations take up to an eighth of the time. The run is stopped and continued, with repeated
    steps if it was killed.

    Attributes:
        images: images of one evaluation.
        noise: the standard deviation of a step's time, as a share of it.
        step_s: the usual seconds of each step of the run.
        stops: the steps of the run before which it is stopped.
    """

    def __init__(self, seed: int, size: Size = Size()) -> None:
        self.seed, draw = seed, random.Random(seed)
        self.epochs, self.steps = draw.choice(size.shapes)
        self.images_per_step = draw.choice(size.batches)
        self.images = int(self.steps * self.images_per_step * draw.uniform(0.02, 0.25))
        shortest_s, longest_s = size.steps_s
        scale = size.scale
        step_s = shortest_s * (longest_s / shortest_s) ** draw.random() / (self.epochs * self.steps)
        self.noise = draw.uniform(0.02, 0.15)
        self.save_s = scale * draw.uniform(0.0, 10.0)
        self.compile_s = scale * draw.uniform(5.0, 300.0)
        self.loader_s = scale * draw.uniform(0.5, 10.0)
        # A forward pass is a third of a step, and its images come from the same loader.
        self.evaluation_s = self.images / self.images_per_step * step_s * draw.uniform(0.3, 0.6)
        total = self.epochs * self.steps
        self.step_s = [step_s] * total
        if draw.random() < 0.3:  # another job begins, and stays
            self._slow_down(int(total * draw.uniform(0.0, 0.05)), total, draw.uniform(1.1, 1.5))
        for _ in range(draw.randint(1, 6)):
            begin = int(total * draw.random())
            self._slow_down(begin, begin + int(total * draw.uniform(0.002, 0.02)), draw.uniform(1.2, 3.0))
        self.stops = sorted(draw.sample(range(1, total), draw.randint(0, 3)))

    def _slow_down(self, begin: int, end: int, factor: float) -> None:
        for step in range(begin, min(end, len(self.step_s))):
            self.step_s[step] *= factor


class SimulatedRun(DisturbedRun):
    """A disturbed run in virtual time."""

    def forecast(self, *, at: float) -> Forecast:
        """Return what is said after the share `at` of the run's time, with the rest of that time."""
        *_, (end, _) = self._moments()
        for now, say in self._moments():
            if now >= at * end and (said := say()) is not None:
                return Forecast(said, end - now)
        raise AssertionError("the run has ended without a forecast")

    def _moments(self) -> Iterator[tuple[float, Callable[[], TimeLeft | None]]]:
        """Yield the working time so far and what says the forecast, after each window."""
        draw = random.Random(f"{self.seed} again")
        now, pace, saved = 0.0, RunPace(), (0, 0.0)
        total = Work(self.epochs * self.steps, self.epochs, self.epochs)
        step, of_process, stops = 0, True, list(self.stops)
        saved_pace = RunPace()
        while step < total.steps:
            epoch, in_epoch = divmod(step, self.steps)
            count = min(WINDOW - in_epoch % WINDOW, self.steps - in_epoch)
            # The steps of a window are independent of each other, so their noise averages out.
            noise = draw.lognormvariate(0, self.noise / count**0.5)
            seconds = math.fsum(self.step_s[step : step + count]) * noise
            seconds += self.compile_s if of_process else self.loader_s if in_epoch == 0 else 0.0
            if of_process or in_epoch == 0:
                pace.add_first_steps(count, seconds, of_process=of_process)
            else:
                pace.add_steps(count, seconds)
            of_process = False
            now, step = now + seconds, step + count
            done = Work(step, epoch + 1, epoch)
            yield now, partial(pace.time_left, done, total, images_per_step=self.images_per_step, images=self.images)
            ends = step % self.steps == 0
            if ends:
                seconds = self.evaluation_s * draw.uniform(0.9, 1.2) + self.save_s
                pace.add_end(seconds)
                now += seconds
            elif now - saved[1] >= SAVE_EVERY_S:
                pace.add_save(self.save_s)
                now += self.save_s
            if ends or now - saved[1] >= SAVE_EVERY_S:
                saved, saved_pace = (step, now), deepcopy(pace)
            if stops and step >= stops[0]:
                stops.pop(0)
                if draw.random() < 0.5:  # killed: the steps after the checkpoint are repeated
                    step, pace = saved[0], deepcopy(saved_pace)
                of_process = True
        yield now, lambda: None
