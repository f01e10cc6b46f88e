"""The arithmetic of a run, decided in one place: fp32, bf16 or fp16 autocast with a scaler, or apex O2.

Everything else trains through the three verbs here (forward, backward, step) and never asks which it is.
"""

import importlib
import importlib.util
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trainer.config import TrainConfig
from trainer.devices import Device
from trainer.errors import UsageError

INITIAL_DYNAMIC_SCALE = 2.0**16
"""apex's and torch's first guess; overflow halves it until it fits."""


class Precision(Protocol):
    """How losses and gradients are computed."""

    name: str

    def optimizer(self, device: Device, groups: Iterable[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
        """The optimizer that goes with this arithmetic."""
        ...

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Cast or patch the model before it is wrapped for data parallelism."""
        ...

    def forward(self) -> AbstractContextManager[Any]:
        """Context of a forward pass."""
        ...

    def backward(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Gradients of an fp32 scalar loss, scaled where the arithmetic needs it."""
        ...

    def step(self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], clip_norm: float) -> None:
        """Clip the true gradients' global norm (0 is off), and update the weights."""
        ...


def choose(config: TrainConfig, device: Device) -> Precision:
    """The policy that `config.precision` means on `device`.

    `auto` on an NPU is apex O2 where apex for Ascend is installed, and fp16 autocast with torch_npu's scaler elsewhere.

    Raises:
        UsageError: O2 was asked for where it cannot be had.
    """
    wanted: str = config.precision
    if wanted == "auto":
        wanted = device.default_precision
        if wanted == "O2" and importlib.util.find_spec("apex") is None:
            wanted = "fp16"
    if wanted == "fp32":
        return Autocast(device, None)
    if wanted == "bf16":
        return Autocast(device, torch.bfloat16)
    if wanted == "fp16":
        return ScaledAutocast(device, config.loss_scale)
    return ApexO2(device, config.loss_scale)


def _device_sgd(device: Device, groups: Iterable[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    return device.sgd(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)


class Autocast:
    """fp32, or autocast to a type with fp32's range: no loss scale."""

    def __init__(self, device: Device, dtype: torch.dtype | None) -> None:
        self._device = device
        self._dtype = dtype
        self.name = "fp32" if dtype is None else "bf16"

    def optimizer(self, device: Device, groups: Iterable[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
        """The device's SGD."""
        return _device_sgd(device, groups, config)

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Nothing to cast."""
        return model

    def forward(self) -> AbstractContextManager[Any]:
        """Autocast, or nothing in fp32."""
        return nullcontext() if self._dtype is None else self._device.autocast(self._dtype)

    def backward(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Plain gradients."""
        loss.backward()

    def step(self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], clip_norm: float) -> None:
        """Clip and update."""
        if clip_norm:
            nn.utils.clip_grad_norm_(parameters, clip_norm)
        optimizer.step()


class ScaledAutocast:
    """fp16 autocast; the scaler skips steps that overflowed."""

    name = "fp16"

    def __init__(self, device: Device, loss_scale: float | str) -> None:
        self._device = device
        self._static = None if loss_scale == "dynamic" else float(loss_scale)
        self._scaler = device.grad_scaler(init_scale=self._static or INITIAL_DYNAMIC_SCALE)

    def optimizer(self, device: Device, groups: Iterable[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
        """The device's SGD."""
        return _device_sgd(device, groups, config)

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Autocast casts each operator; the model stays fp32."""
        return model

    def forward(self) -> AbstractContextManager[Any]:
        """Autocast to fp16."""
        return self._device.autocast(torch.float16)

    def backward(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Gradients of the scaled loss."""
        self._scaler.scale(loss).backward()

    def step(self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], clip_norm: float) -> None:
        """Unscale, clip, update unless a gradient overflowed, and adapt the scale if it is dynamic."""
        if clip_norm:
            self._scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, clip_norm)
        self._scaler.step(optimizer)
        self._scaler.update(self._static)


class ApexO2:
    """apex O2 with combined gradients, as the seed trained: fp16 weights, fp32 master weights and batch norm.

    apex decides when it builds its scaler whether overflow is shared between ranks, so the process group must exist
    before `prepare` (Ascend/apex, patch/npu.patch). Its fused optimizers refuse to work outside of amp.
    """

    name = "O2"

    def __init__(self, device: Device, loss_scale: float | str) -> None:
        if device.kind == "cpu":
            raise UsageError("--precision O2 needs an NPU: on a CPU use --precision fp32")
        try:
            self._amp: Any = importlib.import_module("apex.amp")
            self._optimizers: Any = importlib.import_module("apex.optimizers")
        except ImportError as error:
            raise UsageError(
                f"--precision O2: apex for Ascend cannot be loaded: {error}; use --precision fp16"
            ) from error
        self._loss_scale = loss_scale

    def optimizer(self, device: Device, groups: Iterable[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
        """Apex's fused SGD, which updates the combined gradients in one operator."""
        optimizer: torch.optim.Optimizer = self._optimizers.NpuFusedSGD(
            groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov
        )
        return optimizer

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Cast the model to fp16 and give the optimizer fp32 master weights."""
        prepared: nn.Module
        prepared, _ = self._amp.initialize(
            model,
            optimizer,
            opt_level="O2",
            keep_batchnorm_fp32=True,
            loss_scale=self._loss_scale,
            combine_grad=True,
            verbosity=0,
        )
        return prepared

    def forward(self) -> AbstractContextManager[Any]:
        """The patched model casts its own inputs."""
        return nullcontext()

    def backward(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Gradients of the scaled loss, unscaled again on leaving apex's context."""
        with self._amp.scale_loss(loss, optimizer) as scaled:
            scaled.backward()

    def step(self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], clip_norm: float) -> None:
        """Clip apex's combined buffer, and update; apex itself skips a step that overflowed."""
        if clip_norm:
            clip: Any = optimizer
            clip.clip_optimizer_grad_norm_fused(clip_norm)
        optimizer.step()
