"""What a policy of precision does; everything else trains through these verbs and never asks which policy it is."""

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

INITIAL_DYNAMIC_SCALE = 2.0**16
"""apex's and torch's first guess; overflow halves it until it fits."""
OVERFLOWS_OF_A_DYNAMIC_SCALE = 24
"""From the first guess down to 2^-8: where that still overflows, the gradients themselves are not finite."""


class Precision(Protocol):
    """How losses and gradients are computed."""

    name: str
    optimizer_library: Any
    """The module whose optimizers the arithmetic needs; None: those of the device."""
    overflows: int
    """Steps in a row that may overflow while a dynamic loss scale finds its place."""

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Cast or patch the model before it is wrapped for data parallelism."""
        ...

    def forward(self) -> AbstractContextManager[Any]:
        """Context of a forward pass."""
        ...

    def backward(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Gradients of an fp32 scalar loss, scaled where the arithmetic needs it."""
        ...

    def step(
        self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], *, clip_norm: float, loss: Tensor
    ) -> Tensor:
        """Clip the true gradients' global norm (0 is off), and update the weights unless loss or norm is not finite.

        Args:
            loss: this rank's, a scalar.

        Returns:
            A bool scalar on the device, the same on all ranks: whether the update was left out.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """What the loss scale has adapted to, as plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        ...
