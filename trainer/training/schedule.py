"""Learning rate and drop-path over time: pure functions of the position in the run."""

import math

from trainer.shared.config import TrainConfig


def learning_rate(config: TrainConfig, *, epoch: int, step: int, steps: int) -> float:
    """Rate of step `step` (of `steps`) of epoch `epoch`, both counted from 0.

    `cosine-epoch` is the seed's: constant within an epoch, warm-up to lr over W epochs as lr*(e+1)/(W+1).
    `cosine-step` moves at every step; its warm-up rises linearly from lr/(W*steps).
    """
    warmup, epochs = config.warmup_epochs, config.epochs
    # A timed run may go on for longer than its one epoch, and its warm-up too.
    remaining = max(epochs - warmup, 1)
    if config.schedule == "cosine-epoch":
        if epoch < warmup:
            return config.lr * (epoch + 1) / (warmup + 1)
        return _half_cosine(config.lr, min(1.0, (epoch - warmup) / remaining))
    position = epoch + step / steps
    if position < warmup:
        return config.lr * (epoch * steps + step + 1) / (warmup * steps)
    return _half_cosine(config.lr, min(1.0, (position - warmup) / remaining))


def progress(config: TrainConfig, *, epoch: int, step: int, steps: int) -> float:
    """Share of the run that lies behind, in [0, 1]: ramps drop-path as TensorFlow's slim does."""
    return min(1.0, (epoch * steps + step) / (config.epochs * steps))


def ema_decay(limit: float, updates: int) -> float:
    """Decay of the moving average after `updates` updates: starts low, so that early weights are soon forgotten.

    min(limit, (1+t)/(10+t)), as TensorFlow's ExponentialMovingAverage with num_updates.
    """
    return min(limit, (1 + updates) / (10 + updates))


def _half_cosine(peak: float, fraction: float) -> float:
    return 0.5 * peak * (1 + math.cos(math.pi * fraction))
