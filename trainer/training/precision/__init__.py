"""The arithmetic of a run, chosen in one place: fp32, bf16 or fp16 autocast, or O2 by apex or without it.

The rest of the trainer uses the verbs of `Precision` and never asks which one it is.
"""

import importlib.util
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trainer.devices.device import Device
from trainer.shared.config import TrainConfig
from trainer.shared.errors import UsageError
from trainer.training.precision.apex_o2 import ApexO2
from trainer.training.precision.autocast import Autocast
from trainer.training.precision.loss_scale import LossScaler
from trainer.training.precision.master_weights import NativeO2

__all__ = ["Precision", "choose_precision"]


class Precision(Protocol):
    """How losses and gradients are computed."""

    name: str
    optimizer_library: Any
    """The module whose optimizers the arithmetic needs; None: the device's own."""
    overflows: int
    """Steps in a row that may overflow while a dynamic loss scale adapts."""

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Cast or patch the model before it is wrapped for data parallelism."""
        ...

    def forward(self) -> AbstractContextManager[Any]:
        """Return the context of a forward pass."""
        ...

    def backward(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Compute the gradients of an fp32 scalar loss, scaled if the arithmetic needs it."""
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
        """Return the adapted loss scale as plain values; empty without one."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        ...


def choose_precision(config: TrainConfig, device: Device) -> Precision:
    """Return the arithmetic that `config.precision` means on `device`.

    O2 is apex's if apex for Ascend is installed, and the same without apex elsewhere.

    Raises:
        UsageError: the device does not have this arithmetic.
    """
    name = device.default_precision if config.precision == "auto" else config.precision
    if name == "fp32":
        return Autocast("fp32", device, None)
    if name == "bf16":
        if not device.has_bf16():
            raise UsageError(f"--precision bf16: {device.name()} has no bfloat16: use --precision O2 or fp16")
        return Autocast("bf16", device, torch.bfloat16)
    if name == "fp16":
        return Autocast("fp16", device, torch.float16, LossScaler(device, config.loss_scale))
    if device.kind == "cpu":
        raise UsageError("--precision O2 needs an NPU: on a CPU use --precision fp32")
    if device.kind == "npu" and importlib.util.find_spec("apex") is not None:
        return ApexO2(config.loss_scale)
    return NativeO2(device, config.loss_scale)
