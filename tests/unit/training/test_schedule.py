"""The learning rate, the drop-path ramp and the average's warm-up are the published ones and the seed's."""

import itertools
import math
from functools import partial

import pytest

from trainer.data.sampler import plan_epoch
from trainer.shared.config import Layer, TrainConfig
from trainer.shared.config.layers import resolve
from trainer.training.schedule import completed_fraction, ema_decay, learning_rate


def rate(config: TrainConfig, *, epoch: int, step: int, steps: int) -> float:
    """Return the rate of a step in an epoch of steps with 4 images each."""
    return learning_rate(config, epoch=epoch, images=range(4 * step, 4 * step + 4), planned=4 * steps)


@pytest.mark.parametrize(("epoch", "expected"), [(0, 0.4), (1, 0.39988), (45, 0.2), (89, 0.000122)])
def test_the_seeds_schedule_has_the_seeds_rates(epoch: int, expected: float) -> None:
    config = TrainConfig()
    assert rate(config, epoch=epoch, step=0, steps=5004) == pytest.approx(expected, rel=5e-3)
    assert rate(config, epoch=epoch, step=0, steps=9) == rate(config, epoch=epoch, step=8, steps=9)


def test_the_seeds_warmup_is_a_step_per_epoch() -> None:
    config = TrainConfig(warmup_epochs=4)
    rates = [rate(config, epoch=epoch, step=3, steps=9) for epoch in range(5)]
    assert rates == pytest.approx([0.08, 0.16, 0.24, 0.32, 0.4])


def test_cosine_per_step_rises_to_the_peak_and_falls_to_zero_without_a_jump() -> None:
    config = TrainConfig(schedule="cosine-step", warmup_epochs=2, epochs=6)
    steps = 50
    rates = [rate(config, epoch=e, step=s, steps=steps) for e in range(6) for s in range(steps)]
    assert rates[99] == pytest.approx(0.4)
    assert max(rates) == pytest.approx(0.4)
    assert all(a < b for a, b in itertools.pairwise(rates[:100]))
    assert all(a > b for a, b in itertools.pairwise(rates[100:]))
    assert rates[-1] == pytest.approx(0.2 * (1 + math.cos(math.pi * 199 / 200)), rel=1e-6)
    assert max(abs(a - b) for a, b in itertools.pairwise(rates)) < 0.0041


@pytest.mark.parametrize("warmup_epochs", [0, 5])
def test_another_number_of_devices_in_the_middle_of_an_epoch_moves_no_rate(warmup_epochs: int) -> None:
    config = TrainConfig(schedule="cosine-step", warmup_epochs=warmup_epochs)
    plan = partial(plan_epoch, 72, batch_size=8, accumulate=1, steps_limit=None)
    whole, rest = plan(world_size=3), plan(world_size=2, done_images=48, planned=72)
    position = {"epoch": 4, "planned": 72}
    rates = [learning_rate(config, images=whole.positions(step), **position) for step in range(3)]
    resumed = [learning_rate(config, images=rest.positions(step), **position) for step in range(2)]
    at_48, at_72 = rates[2], learning_rate(config, epoch=5, images=range(24), planned=72)
    assert whole.positions(2).start == rest.positions(0).start == 48
    if warmup_epochs:
        assert rates[1] < resumed[0] < resumed[1] == pytest.approx(at_48)
    else:
        assert at_48 == resumed[0] > resumed[1] > at_72
    fractions = [
        completed_fraction(config, images=plan.positions(step), **position) for plan, step in ((whole, 2), (rest, 0))
    ]
    assert fractions[0] == fractions[1]


@pytest.mark.parametrize("schedule", ["cosine-epoch", "cosine-step"])
@pytest.mark.parametrize("warmup_epochs", [0, 1, 5])
def test_a_timed_run_can_last_longer_than_its_epochs(schedule: str, warmup_epochs: int) -> None:
    layers = [Layer("flag", {"mode": "performance", "schedule": schedule, "warmup_epochs": warmup_epochs, "epochs": 1})]
    config, _ = resolve(TrainConfig, layers)
    rates = [rate(config, epoch=epoch, step=step, steps=4) for epoch in range(9) for step in range(4)]
    assert all(0 <= value <= config.lr + 1e-12 for value in rates)


def test_the_completed_fraction_runs_from_zero_to_just_below_one() -> None:
    config = TrainConfig(epochs=4)
    assert completed_fraction(config, epoch=0, images=range(0, 4), planned=40) == 0
    assert completed_fraction(config, epoch=2, images=range(0, 4), planned=40) == 0.5
    assert completed_fraction(config, epoch=3, images=range(36, 40), planned=40) == 39 / 40


def test_the_average_follows_closely_at_first_and_slowly_later() -> None:
    assert ema_decay(0.9998, 0) == 0.1
    assert ema_decay(0.9998, 10**6) == 0.9998
