"""fp32, autocast to bf16, and autocast to fp16 with a loss scale."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from trainer.devices.device import Device
from trainer.training.precision.loss_scale import LossScaler, clipped_norm, not_finite


class TorchPrecision:
    """Autocast chooses the type of each operator, or all are fp32; the weights stay fp32."""

    optimizer_library = None
    """The module whose optimizers the arithmetic needs; None: the device's own."""
    overflows: int
    """Steps in a row that may overflow while a dynamic loss scale adapts."""

    def __init__(self, name: str, device: Device, dtype: torch.dtype | None, scaler: LossScaler | None = None) -> None:
        """Compute in `dtype` (None: everything in fp32). fp16, which does not have fp32's range, needs a `scaler`."""
        self.name, self.overflows = name, 0 if scaler is None else scaler.overflows
        self._device, self._dtype, self._scaler = device, dtype, scaler

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Cast or patch the model before it is wrapped for data parallelism: here return it unchanged."""
        return model

    def forward(self) -> AbstractContextManager[Any]:
        """Return the context of a forward pass: autocast, without effect in fp32."""
        return nullcontext() if self._dtype is None else self._device.autocast(self._dtype)

    def backward(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Compute the gradients of an fp32 scalar loss, scaled if there is a scale."""
        if self._scaler is None:
            loss.backward()
        else:
            self._scaler.backward(loss)

    def step(
        self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], *, clip_norm: float, loss: Tensor
    ) -> Tensor:
        """Clip the true gradients' global norm (0 is off), and update the weights unless loss or norm is not finite.

        Args:
            loss: this rank's, a scalar.

        Returns:
            A bool scalar on the device, the same on all ranks: whether the update was left out.
        """
        if self._scaler is not None:
            return self._scaler.step(optimizer, parameters, clip_norm=clip_norm, loss=loss)
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
        """Return the scale, and the steps since it last overflowed; empty without a scale."""
        return {} if self._scaler is None else self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        if self._scaler is not None:
            self._scaler.load_state_dict(state)
