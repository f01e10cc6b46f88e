"""Runs in virtual time, with the disturbances that real ones have: what a forecast is tested on."""

import math
import random
from collections.abc import Callable, Iterator
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


class SimulatedRun:
    """A run of a network on some devices, with all its costs drawn from `seed`.

    Steps are noisy. The first steps of each process compile kernels, the first steps of each epoch wait for new loader
    processes. Another job slows the steps down from time to time, or for good from some early moment on. Checkpoints
    block the loop, and evaluations take up to an eighth of the time. The run is stopped and continued, with repeated
    steps if it was killed.
    """

    def __init__(self, seed: int) -> None:
        self._seed, draw = seed, random.Random(seed)
        self.epochs, self.steps = draw.choice([(1, 5000), (3, 1000), (10, 500), (30, 500), (90, 200)])
        self.images_per_step = draw.choice([64, 256])
        self.images = int(self.steps * self.images_per_step * draw.uniform(0.02, 0.25))
        step_s = 3600 * 4 * 25 ** draw.random() / (self.epochs * self.steps)
        self._noise = draw.uniform(0.02, 0.15)
        self._save_s = draw.uniform(0.0, 10.0)
        self._compile_s = draw.uniform(5.0, 300.0)
        self._loader_s = draw.uniform(0.5, 10.0)
        # A forward pass is a third of a step, and its images come from the same loader.
        self._evaluation_s = self.images / self.images_per_step * step_s * draw.uniform(0.3, 0.6)
        total = self.epochs * self.steps
        self._step_s = [step_s] * total
        if draw.random() < 0.3:  # another job begins, and stays
            self._slow_down(int(total * draw.uniform(0.0, 0.05)), total, draw.uniform(1.1, 1.5))
        for _ in range(draw.randint(1, 6)):
            begin = int(total * draw.random())
            self._slow_down(begin, begin + int(total * draw.uniform(0.002, 0.02)), draw.uniform(1.2, 3.0))
        self._stops = sorted(draw.sample(range(1, total), draw.randint(0, 3)))

    def _slow_down(self, begin: int, end: int, factor: float) -> None:
        for step in range(begin, min(end, len(self._step_s))):
            self._step_s[step] *= factor

    def forecast(self, *, at: float) -> Forecast:
        """Return what is said after the share `at` of the run's time, with the rest of that time."""
        *_, (end, _) = self._moments()
        for now, say in self._moments():
            if now >= at * end and (said := say()) is not None:
                return Forecast(said, end - now)
        raise AssertionError("the run has ended without a forecast")

    def _moments(self) -> Iterator[tuple[float, Callable[[], TimeLeft | None]]]:
        """Yield the working time so far and what says the forecast, after each window."""
        draw = random.Random(f"{self._seed} again")
        now, pace, saved = 0.0, RunPace(), (0, 0.0)
        total = Work(self.epochs * self.steps, self.epochs, self.epochs)
        step, of_process, stops = 0, True, list(self._stops)
        saved_pace = RunPace()
        while step < total.steps:
            epoch, in_epoch = divmod(step, self.steps)
            count = min(WINDOW - in_epoch % WINDOW, self.steps - in_epoch)
            # The steps of a window are independent of each other, so their noise averages out.
            noise = draw.lognormvariate(0, self._noise / count**0.5)
            seconds = math.fsum(self._step_s[step : step + count]) * noise
            seconds += self._compile_s if of_process else self._loader_s if in_epoch == 0 else 0.0
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
                seconds = self._evaluation_s * draw.uniform(0.9, 1.2) + self._save_s
                pace.add_end(seconds)
                now += seconds
            elif now - saved[1] >= SAVE_EVERY_S:
                pace.add_save(self._save_s)
                now += self._save_s
            if ends or now - saved[1] >= SAVE_EVERY_S:
                saved, saved_pace = (step, now), deepcopy(pace)
            if stops and step >= stops[0]:
                stops.pop(0)
                if draw.random() < 0.5:  # killed: the steps after the checkpoint are repeated
                    step, pace = saved[0], deepcopy(saved_pace)
                of_process = True
        yield now, lambda: None
