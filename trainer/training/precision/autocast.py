"""fp32, and autocast to bf16 or, with a loss scale, to fp16."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from trainer.devices.device import Device
from trainer.training.precision.loss_scale import LossScaler, clipped_norm, not_finite


class Autocast:
    """fp32, or autocast to a type with fp32's range, which needs no loss scale."""

    overflows = 0
    optimizer_library = None

    def __init__(self, device: Device, dtype: torch.dtype | None) -> None:
        self._device = device
        self._dtype = dtype
        self.name = "fp32" if dtype is None else "bf16"

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Return the model as it is."""
        return model

    def forward(self) -> AbstractContextManager[Any]:
        """Return autocast; in fp32 a context without effect."""
        return nullcontext() if self._dtype is None else self._device.autocast(self._dtype)

    def backward(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Compute the gradients."""
        loss.backward()

    def step(
        self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], *, clip_norm: float, loss: Tensor
    ) -> Tensor:
        """Clip, and update unless loss or norm is not finite."""
        skipped = not_finite(loss, clipped_norm(parameters, clip_norm))
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            # A fused optimizer reads on the device whether to update, as GradScaler has it: the host does not wait.
            fused: Any = optimizer
            fused.grad_scale, fused.found_inf = None, skipped.float()
            optimizer.step()
        elif not skipped:  # waits for the device: torch_npu's fused optimizers have no such switch
            optimizer.step()
        return skipped

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: there is no scale."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore nothing: there is no scale."""


class ScaledAutocast:
    """fp16 autocast; the scaler skips steps that overflowed."""

    name = "fp16"
    optimizer_library = None

    def __init__(self, device: Device, loss_scale: float | str) -> None:
        self._device = device
        self._scaler = LossScaler(device, loss_scale)
        self.overflows = self._scaler.overflows

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Return the model as it is: autocast casts each operator, and the weights stay fp32."""
        return model

    def forward(self) -> AbstractContextManager[Any]:
        """Return autocast to fp16."""
        return self._device.autocast(torch.float16)

    def backward(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Compute the gradients of the scaled loss."""
        self._scaler.backward(loss)

    def step(
        self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], *, clip_norm: float, loss: Tensor
    ) -> Tensor:
        """Unscale, clip, update unless loss or a gradient is not finite, and adapt the scale if it is dynamic."""
        return self._scaler.step(optimizer, parameters, clip_norm=clip_norm, loss=loss)

    def state_dict(self) -> dict[str, Any]:
        """Return the scale, and the steps since it last overflowed."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore both."""
        self._scaler.load_state_dict(state)
