"""The learning rate, the drop-path ramp and the average's warm-up are the published ones and the seed's."""

import itertools
import math

import pytest

from trainer.shared.config import Layer, TrainConfig
from trainer.shared.config.layers import resolve
from trainer.training.schedule import completed_fraction, ema_decay, learning_rate


@pytest.mark.parametrize(("epoch", "rate"), [(0, 0.4), (1, 0.39988), (45, 0.2), (89, 0.000122)])
def test_the_seeds_schedule_has_the_seeds_rates(epoch: int, rate: float) -> None:
    config = TrainConfig()
    assert learning_rate(config, epoch=epoch, step=0, steps=5004) == pytest.approx(rate, rel=5e-3)
    assert learning_rate(config, epoch=epoch, step=0, steps=9) == learning_rate(config, epoch=epoch, step=8, steps=9)


def test_the_seeds_warmup_is_a_step_per_epoch() -> None:
    config = TrainConfig(warmup_epochs=4)
    rates = [learning_rate(config, epoch=epoch, step=3, steps=9) for epoch in range(5)]
    assert rates == pytest.approx([0.08, 0.16, 0.24, 0.32, 0.4])


def test_cosine_per_step_rises_to_the_peak_and_falls_to_zero_without_a_jump() -> None:
    config = TrainConfig(schedule="cosine-step", warmup_epochs=2, epochs=6)
    steps = 50
    rates = [learning_rate(config, epoch=e, step=s, steps=steps) for e in range(6) for s in range(steps)]
    assert rates[99] == pytest.approx(0.4)
    assert max(rates) == pytest.approx(0.4)
    assert all(a < b for a, b in itertools.pairwise(rates[:100]))
    assert all(a > b for a, b in itertools.pairwise(rates[100:]))
    assert rates[-1] == pytest.approx(0.2 * (1 + math.cos(math.pi * 199 / 200)), rel=1e-6)
    assert max(abs(a - b) for a, b in itertools.pairwise(rates)) < 0.0041


@pytest.mark.parametrize("schedule", ["cosine-epoch", "cosine-step"])
@pytest.mark.parametrize("warmup_epochs", [0, 1, 5])
def test_a_timed_run_can_last_longer_than_its_epochs(schedule: str, warmup_epochs: int) -> None:
    layers = [Layer("flag", {"mode": "performance", "schedule": schedule, "warmup_epochs": warmup_epochs, "epochs": 1})]
    config, _ = resolve(TrainConfig, layers)
    rates = [learning_rate(config, epoch=epoch, step=step, steps=4) for epoch in range(9) for step in range(4)]
    assert all(0 <= rate <= config.lr + 1e-12 for rate in rates)


def test_the_completed_fraction_runs_from_zero_to_just_below_one() -> None:
    config = TrainConfig(epochs=4)
    assert completed_fraction(config, epoch=0, step=0, steps=10) == 0
    assert completed_fraction(config, epoch=2, step=0, steps=10) == 0.5
    assert completed_fraction(config, epoch=3, step=9, steps=10) == 39 / 40


def test_the_average_follows_closely_at_first_and_slowly_later() -> None:
    assert ema_decay(0.9998, 0) == 0.1
    assert ema_decay(0.9998, 10**6) == 0.9998
