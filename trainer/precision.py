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
from trainer.distributed import any_rank
from trainer.errors import UsageError

INITIAL_DYNAMIC_SCALE = 2.0**16
"""apex's and torch's first guess; overflow halves it until it fits."""
OVERFLOWS_OF_A_DYNAMIC_SCALE = 24
"""From the first guess down to 2^-8: where that still overflows, the gradients themselves are not finite."""


class Precision(Protocol):
    """How losses and gradients are computed."""

    name: str
    overflows: int
    """Steps in a row that may overflow while a dynamic loss scale finds its place."""

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

    overflows = 0

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

    def step(
        self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], *, clip_norm: float, loss: Tensor
    ) -> Tensor:
        """Clip and update."""
        skipped = _not_finite(loss, _clipped_norm(parameters, clip_norm))
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            # A fused optimizer reads on the device whether to update: what GradScaler uses, and the host does not wait.
            fused: Any = optimizer
            fused.grad_scale, fused.found_inf = None, skipped.float()
            optimizer.step()
        elif not skipped:  # waits for the device: torch_npu's fused optimizers have no such switch
            optimizer.step()
        return skipped

    def state_dict(self) -> dict[str, Any]:
        """No scale."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """No scale."""


class ScaledAutocast:
    """fp16 autocast; the scaler skips steps that overflowed."""

    name = "fp16"

    def __init__(self, device: Device, loss_scale: float | str) -> None:
        self._device = device
        self._static = None if loss_scale == "dynamic" else float(loss_scale)
        self._scaler = device.grad_scaler(init_scale=self._static or INITIAL_DYNAMIC_SCALE)
        self.overflows = 0 if self._static else OVERFLOWS_OF_A_DYNAMIC_SCALE

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

    def step(
        self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], *, clip_norm: float, loss: Tensor
    ) -> Tensor:
        """Unscale, clip, update unless loss or a gradient is not finite, and adapt the scale if it is dynamic."""
        # The scaler judges gradients alone, so a loss that is not finite is made to show in one of them.
        poison = torch.where(_not_finite(loss), torch.nan, 0.0)
        next(p.grad for p in parameters if p.grad is not None).add_(poison)
        self._scaler.unscale_(optimizer)
        # The gradients, and so their norm, are the same on all ranks by now.
        skipped = ~torch.isfinite(_clipped_norm(parameters, clip_norm))
        self._scaler.step(optimizer)
        self._scaler.update(self._static)
        return skipped

    def state_dict(self) -> dict[str, Any]:
        """Scale, and steps since it last overflowed."""
        return dict(self._scaler.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore both."""
        self._scaler.load_state_dict(state)


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
        self.overflows = OVERFLOWS_OF_A_DYNAMIC_SCALE if loss_scale == "dynamic" else 0

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

    def step(
        self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], *, clip_norm: float, loss: Tensor
    ) -> Tensor:
        """Clip apex's combined buffer, and update; apex itself skips a step whose gradients overflowed."""
        if clip_norm:
            clip: Any = optimizer
            clip.clip_optimizer_grad_norm_fused(clip_norm)
        optimizer.step()
        return _not_finite(loss)

    def state_dict(self) -> dict[str, Any]:
        """Apex's loss scale, and steps since it last overflowed."""
        return dict(self._amp.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore both."""
        self._amp.load_state_dict(state)


def _clipped_norm(parameters: list[nn.Parameter], clip_norm: float) -> Tensor:
    """The global norm of the gradients before they are clipped to `clip_norm` (0: left as they are)."""
    if clip_norm:
        return nn.utils.clip_grad_norm_(parameters, clip_norm)
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def _not_finite(*values: Tensor) -> Tensor:
    """A bool scalar, the same on all ranks: whether any of the scalars is not finite on any of them."""
    return any_rank(~torch.isfinite(torch.stack([value.detach().float() for value in values])).all())
