"""A loss far above the run's own history is seen early, and ordinary noise is not."""

import math
import random
from collections.abc import Iterable

import pytest

from trainer.training.loss_history import LossHistory
from trainer.training.progress import TrainingProgress

GUESSING = math.log(10)
SEED = 20


def warnings(losses: Iterable[float]) -> list[int]:
    """Return the steps at which the loss begins to be too high."""
    history, steps = LossHistory(), []
    for step, loss in enumerate(losses):
        before = history.too_high
        history.add(loss, guessing=GUESSING)
        if history.too_high and not before:
            steps.append(step)
    return steps


def noisy(level: float, count: int, *, noise: float = 0.3, seed: int = SEED) -> list[float]:
    """Return losses around `level`, as small batches have them."""
    draw = random.Random(seed)
    return [level * math.exp(draw.gauss(0, noise)) for _ in range(count)]


@pytest.mark.parametrize("seed", range(SEED, SEED + 20))
def test_ordinary_training_warns_never(seed: int) -> None:
    falling = [2.4 * math.exp(-step / 300) + loss for step, loss in enumerate(noisy(0.1, 2000, seed=seed))]
    assert warnings(falling) == []
    assert warnings(noisy(0.4, 2000, seed=seed)) == [], "weights that were trained before"
    single = noisy(2.0, 500, seed=seed)
    single[300] *= 4
    assert warnings(single) == [], "one bad batch"
    assert warnings([math.nan, *noisy(2.0, 20, seed=seed), math.inf, *noisy(2.0, 200, seed=seed)]) == []


def test_a_loss_that_rises_is_seen_within_some_steps() -> None:
    # The first losses of a run with --lr 0.4 and batches of 8.
    assert warnings([2.4, 9, 30, 45, 58, 20, 61, 58, 50, 66, 60]) == [9]
    (step,) = warnings(noisy(1.0, 300) + noisy(4.0, 30))
    assert 300 < step <= 306
    (step,) = warnings(noisy(0.1, 300, noise=0.05) + [0.1 * 1.2**step for step in range(40)])
    assert 300 < step <= 312


def test_a_loss_that_stays_high_becomes_the_usual_one() -> None:
    history = LossHistory()
    for loss in noisy(0.5, 300) + noisy(1.5, 600):
        history.add(loss, guessing=GUESSING)
    assert not history.too_high
    assert warnings(noisy(0.5, 300) + noisy(1.5, 600)) != []


def test_the_history_survives_a_checkpoint_and_one_from_before_it_existed() -> None:
    progress = TrainingProgress()
    for loss in [*noisy(2.0, 60), 1e300, 1e300]:
        progress.history.add(loss, guessing=GUESSING)
    values = progress.to_json()
    assert TrainingProgress.from_json(values).history == progress.history
    assert progress.health == "doubtful"
    del values["history"]
    assert TrainingProgress.from_json(values).health == "good"
    progress.bad_steps = 1
    assert progress.health == "bad"
