"""How far a run is, and its figures so far: what a checkpoint holds next to the state of the parts."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import to_json

from trainer.checkpoint.manifest import BAD, DOUBTFUL, GOOD
from trainer.records.run_records import SavedExtent
from trainer.training.evaluation import Evaluation
from trainer.training.loss_history import LossHistory
from trainer.training.steps import StepWindow
from trainer.training.time_left import RunPace, TimeLeft, Work
from trainer.training.time_split import RankTimes


def rate(images: int, seconds: float) -> float | None:
    """Return images per second; None if there were no images, or no time passed."""
    return images / seconds if images and seconds > 0 else None


@dataclass
class Throughput:
    """Images per second of the whole job over all timed steps, the warm-up apart: their images by their wall time.

    The time holds loading, computing and periodic checkpoints, but no evaluation and nothing else between epochs.
    """

    images: int = 0
    seconds: float = 0.0

    def add(self, window: StepWindow) -> None:
        """Count a window, unless it belongs to the warm-up."""
        if window.timed:
            self.images += window.images
            self.seconds += window.seconds

    @property
    def fps(self) -> float | None:
        """None if no step was timed."""
        return rate(self.images, self.seconds)


@dataclass
class EpochSums:
    """Sums over the steps of one epoch, for its row in the seed's table."""

    losses: float = 0.0
    steps: int = 0
    images: int = 0
    correct: int = 0
    seconds: float = 0.0
    lr: float = 0.0

    def add(self, window: StepWindow) -> None:
        """Count a window. Losses are added one by one, so that the sum does not depend on where windows end."""
        for loss in window.losses:
            self.losses += loss
        self.steps += len(window.losses)
        self.images += window.images
        self.correct += window.correct
        self.seconds += window.seconds
        self.lr = window.lrs[-1]


@dataclass
class TrainingProgress:
    """The next step to take is step `step` of epoch `epoch`, both counted from 0.

    Attributes:
        global_step: optimizer steps since the run's beginning.
        images: images of this epoch's order that are used up.
        planned: images that this epoch uses in all; None before it has begun.
        steps: steps that this epoch has in all; None before it has begun.
        equalised: the epoch's steps are done, and the batch-norm statistics were averaged for its evaluation. The name
            is the one in saved checkpoints.
        lr_factor: multiplies the learning rate, for `--lr-batch` and for another number of devices since the beginning.
        bad_steps: the latest steps in a row without an update, because loss or gradient was not finite.
        wall_s: seconds of all attempts so far.
        pace: the times of steps, saves and evaluations so far.
        times: where the time of each rank went so far; of this number of devices.
        best_epoch: the epoch of `best`; None in checkpoints of versions that did not count it.
    """

    epoch: int = 0
    step: int = 0
    global_step: int = 0
    images: int = 0
    planned: int | None = None
    steps: int | None = None
    equalised: bool = False
    lr_factor: float = 1.0
    bad_steps: int = 0
    wall_s: float = 0.0
    best: Evaluation | None = None
    best_epoch: int | None = None
    last: Evaluation | None = None
    sums: EpochSums = field(default_factory=EpochSums)
    throughput: Throughput = field(default_factory=Throughput)
    history: LossHistory = field(default_factory=LossHistory)
    pace: RunPace = field(default_factory=RunPace)
    times: RankTimes = field(default_factory=RankTimes)

    def add(self, window: StepWindow, *, images: int) -> None:
        """Count the steps of `window`, which used `images` positions of the epoch's order."""
        self.step += len(window.losses)
        self.global_step += len(window.losses)
        self.images += images
        self.sums.add(window)
        self.throughput.add(window)

    def time_left(self, step: int, *, epochs: int, global_batch: int, evaluated: int) -> TimeLeft | None:
        """Return how long the run still takes after `step` steps of this epoch, if all epochs are like it.

        It is None while that is unknown.

        Args:
            epochs: epochs of the run.
            global_batch: images of the whole job in one step.
            evaluated: images of one evaluation.
        """
        steps = self.steps or 0
        done = Work(self.epoch * steps + step, starts=self.epoch + 1, ends=self.epoch)
        total = Work(epochs * steps, starts=epochs, ends=epochs)
        return self.pace.time_left(done, total, images_per_step=global_batch, images=evaluated)

    @property
    def health(self) -> str:
        """The state of the training, for its checkpoint."""
        if self.bad_steps:
            return BAD
        return DOUBTFUL if self.history.too_high else GOOD

    def end_epoch(self, score: Evaluation) -> bool:
        """Begin the next epoch after an evaluation. Return whether its score is the best so far.

        A score whose loss is not finite is never the best: its network gives some images no answer.
        """
        self.last = score
        best = self.best if self.best is not None and math.isfinite(self.best.loss) else None
        is_best = math.isfinite(score.loss) and (best is None or score.top1 > best.top1)
        if is_best:
            self.best, self.best_epoch = score, self.epoch
        self.epoch += 1
        self.step, self.images, self.planned, self.steps = 0, 0, None, None
        self.equalised, self.sums = False, EpochSums()
        return is_best

    @property
    def saved(self) -> SavedExtent:
        """The records that belong to this progress."""
        return SavedExtent(steps=self.global_step, epochs=self.epoch, epoch_steps=self.step)

    def to_json(self) -> dict[str, Any]:
        """Return plain values. JSON has no infinity and no NaN, as the loss of a bad step can be: they become text."""
        values: dict[str, Any] = json.loads(to_json(self, inf_nan_mode="strings"))
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TrainingProgress":
        """Return the progress that `to_json` has written."""
        return TypeAdapter(cls).validate_python(values)
