"""Learning rate and drop-path over time: pure functions of the position in the run."""

import math

from trainer.shared.config import TrainConfig


def learning_rate(config: TrainConfig, *, epoch: int, images: range, planned: int) -> float:
    """Return the rate of one step of epoch `epoch`, which counts from 0.

    `cosine-epoch` is the seed's: constant within an epoch, warm-up to lr over W epochs as lr*(e+1)/(W+1).
    `cosine-step` moves at every step; its warm-up rises linearly from lr/(W*steps of an epoch).

    Args:
        images: the positions of the epoch's order that the step uses. Images and not steps measure the position,
            because a resumed run can have another number of images per step.
        planned: images that the epoch uses in all.
    """
    warmup, epochs = config.warmup_epochs, config.epochs
    # A timed run, and its warm-up, may last longer than its only epoch.
    remaining = max(epochs - warmup, 1)
    if config.schedule == "cosine-epoch":
        if epoch < warmup:
            return config.lr * (epoch + 1) / (warmup + 1)
        return _half_cosine(config.lr, min(1.0, (epoch - warmup) / remaining))
    position = epoch + images.start / planned
    if position < warmup:
        return config.lr * ((epoch * planned + images.stop) / (warmup * planned))
    return _half_cosine(config.lr, min(1.0, (position - warmup) / remaining))


def completed_fraction(config: TrainConfig, *, epoch: int, images: range, planned: int) -> float:
    """Return the share of the run before a step, in [0, 1]; it ramps drop-path up as TensorFlow's slim does."""
    return min(1.0, (epoch * planned + images.start) / (config.epochs * planned))


def ema_decay(limit: float, updates: int) -> float:
    """Return the decay of the moving average after `updates` updates: low at first, to forget early weights soon.

    min(limit, (1+t)/(10+t)), as TensorFlow's ExponentialMovingAverage with num_updates.
    """
    return min(limit, (1 + updates) / (10 + updates))


def _half_cosine(peak: float, fraction: float) -> float:
    return 0.5 * peak * (1 + math.cos(math.pi * fraction))
