"""A moving average of the weights, which usually scores better than the last weights themselves."""

import copy

import torch
from torch import Tensor

from trainer.model.pnasnet import PNASNet5
from trainer.training.schedule import ema_decay


class Ema:
    """The averaged model; batch-norm statistics are copied, not averaged twice."""

    def __init__(self, model: PNASNet5, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self._decay = decay
        self.updates = 0

    def next_weight(self) -> float:
        """Return the share that the next update gives to the model, and count that update."""
        weight = 1 - ema_decay(self._decay, self.updates)
        self.updates += 1
        return weight

    @torch.no_grad()
    def update(self, model: PNASNet5, weight: float | Tensor) -> None:
        """Move the average towards `model` after an optimizer step.

        Args:
            weight: from `next_weight`; in a captured step it is an fp32 scalar on the device, with the same result.
        """
        averages: list[Tensor] = list(self.model.parameters())
        current = [p.detach().to(a.dtype) for a, p in zip(averages, model.parameters(), strict=True)]
        if isinstance(weight, Tensor):
            torch._foreach_lerp_(averages, current, [weight] * len(averages))
        else:
            torch._foreach_lerp_(averages, current, weight)

    @torch.no_grad()
    def copy_buffers(self, model: PNASNet5) -> None:
        """Copy the batch-norm statistics of `model`, before an evaluation and not at every step."""
        for average, current in zip(self.model.buffers(), model.buffers(), strict=True):
            average.copy_(current)
