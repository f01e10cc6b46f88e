"""fp32 and autocast to bf16; and updates that are left out, on all ranks alike, if a loss or gradient is not finite."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from trainer.devices.device import Device
from trainer.distributed.process_group import any_rank


class Precision:
    """Autocast chooses the type of each operator, or all are fp32; the weights stay fp32."""

    optimizer_library: Any = None
    """The module whose optimizers the arithmetic needs; None: the device's own."""
    overflows = 0
    """Steps in a row that may overflow while a dynamic loss scale adapts."""

    def __init__(self, name: str, device: Device, dtype: torch.dtype | None) -> None:
        """Compute in `dtype` (None: without autocast)."""
        self.name = name
        self._device, self._dtype = device, dtype

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Cast or patch the model before it is wrapped for data parallelism: here return it unchanged."""
        return model

    def forward(self) -> AbstractContextManager[Any]:
        """Return the context of a forward pass, without effect if there is no autocast."""
        return nullcontext() if self._dtype is None else self._device.autocast(self._dtype)

    def backward(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Compute the gradients of an fp32 scalar loss, scaled if there is a scale."""
        loss.backward()

    def step(
        self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], *, clip_norm: float, loss: Tensor
    ) -> Tensor:
        """Clip the true gradients' global norm (0 is off), and update the weights unless loss or norm is not finite.

        Args:
            parameters: the optimizer's, with gradients that are the same on all ranks.
            loss: this rank's, a scalar.

        Returns:
            A bool scalar on the device, the same on all ranks: whether the update was left out.
        """
        skipped = any_rank(self.check(parameters, clip_norm=clip_norm, loss=loss))
        self.update_weights(optimizer, skipped)
        return skipped

    def check(self, parameters: list[nn.Parameter], *, clip_norm: float, loss: Tensor) -> Tensor:
        """Clip the gradients, and return whether loss or norm is not finite on this rank: a bool scalar."""
        return not_finite(loss, clipped_norm(parameters, clip_norm))

    def update_weights(self, optimizer: torch.optim.Optimizer, skipped: Tensor) -> None:
        """Update the weights unless the bool scalar `skipped` is true."""
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            # A fused optimizer reads on the device whether to update, as GradScaler has it: the host does not wait.
            fused: Any = optimizer
            fused.grad_scale, fused.found_inf = None, skipped.float()
            optimizer.step()
        elif not skipped:  # waits for the device: torch_npu's fused optimizers have no such switch
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the scale, and the steps since it last overflowed; empty without a scale."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore both; a fixed scale stays the run's own."""


def clipped_norm(parameters: list[nn.Parameter], clip_norm: float) -> Tensor:
    """Clip the gradients' global norm to `clip_norm` (0: do not clip). Return the norm before."""
    if clip_norm:
        return nn.utils.clip_grad_norm_(parameters, clip_norm)
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def not_finite(*values: Tensor) -> Tensor:
    """Return a bool scalar: whether any of the scalars is not finite."""
    return ~torch.isfinite(torch.stack([value.detach().float() for value in values])).all()
