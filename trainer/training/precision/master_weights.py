"""O2 without apex: fp16 weights and activations, fp32 batch norm and master weights, and a loss scale.

It does the same as apex's O2, for machines without apex for Ascend: apex has no package on an index, and its last
public version is of 2023.
"""

from typing import Any

import torch
from torch import Tensor, nn

from trainer.devices.device import Device
from trainer.training.precision.loss_scale import DeviceScaledPrecision, ScaledPrecision
from trainer.training.precision.precision import Precision


class _MasterWeights(Precision):
    """The optimizer updates fp32 copies of the fp16 weights, which are then rounded back into them.

    The model casts its own inputs and outputs. The copies are the optimizer's parameters, so that the state of this
    precision is only the loss scale.
    """

    keeps_gradients = False
    """The gradients of the halves stay at one place in memory, and are set to zero by their owner."""
    _halves: list[Tensor]
    _masters: list[Tensor]
    _optimized: list[nn.Parameter]
    """The masters, and the parameters that stay in fp32."""

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Cast all but batch norm to fp16, and give the optimizer fp32 copies to work on."""
        masters = {}
        for parameter in _all_but_batch_norm(model):
            parameter.data = parameter.data.half()
            # From the rounded weights, as apex does.
            master = nn.Parameter(parameter.detach().float(), requires_grad=parameter.requires_grad)
            masters[parameter] = master
        for group in optimizer.param_groups:
            group["params"] = [masters.get(parameter, parameter) for parameter in group["params"]]
        self._halves, self._masters = list(masters), list(masters.values())
        self._optimized = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        model.register_forward_pre_hook(_halve_inputs)
        model.register_forward_hook(_widen_outputs)
        return super().prepare(model, optimizer)

    def _widen_gradients(self) -> None:
        """Copy into the masters' gradients, which stay in place: fused optimizers have made them parts of a buffer."""
        wide, narrow = [], []
        for half, master in zip(self._halves, self._masters, strict=True):
            if half.grad is not None:
                if master.grad is None:
                    master.grad = torch.empty_like(master)
                wide.append(master.grad)
                narrow.append(half.grad)
                if not self.keeps_gradients:
                    # The optimizer's zero_grad knows only the masters.
                    half.grad = None
        torch._foreach_copy_(wide, narrow)

    def _round_weights(self) -> None:
        torch._foreach_copy_(self._halves, self._masters)


class NativeO2(_MasterWeights, ScaledPrecision):
    """O2 with the device's own scaler."""

    def __init__(self, device: Device, loss_scale: float | str) -> None:
        super().__init__("O2-native", device, None, loss_scale)

    @torch.no_grad()
    def step(
        self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], *, clip_norm: float, loss: Tensor
    ) -> Tensor:
        """Widen the gradients, update the masters unless there was an overflow, and round them into the weights."""
        self._widen_gradients()
        skipped = super().step(optimizer, self._optimized, clip_norm=clip_norm, loss=loss)
        self._round_weights()
        return skipped


class CapturedO2(_MasterWeights, DeviceScaledPrecision):
    """The same for a captured step."""

    keeps_gradients = True

    def __init__(self, device: Device, loss_scale: float | str) -> None:
        super().__init__("O2-native", device, None, loss_scale)

    @torch.no_grad()
    def check(self, parameters: list[nn.Parameter], *, clip_norm: float, loss: Tensor) -> Tensor:
        """Widen the gradients, unscale and clip them, and return whether there was an overflow."""
        self._widen_gradients()
        return super().check(self._optimized, clip_norm=clip_norm, loss=loss)

    @torch.no_grad()
    def update_weights(self, optimizer: torch.optim.Optimizer, skipped: Tensor) -> None:
        """Update the masters unless `skipped` is true, and round them into the weights."""
        super().update_weights(optimizer, skipped)
        self._round_weights()


def _all_but_batch_norm(model: nn.Module) -> list[nn.Parameter]:
    return [
        parameter
        for module in model.modules()
        if not isinstance(module, nn.modules.batchnorm._BatchNorm)
        for parameter in module.parameters(recurse=False)
    ]


def _halve_inputs(_model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.half() if torch.is_tensor(value) and value.is_floating_point() else value for value in inputs)


def _widen_outputs(_model: nn.Module, _inputs: tuple[Any, ...], outputs: Any) -> Any:
    if isinstance(outputs, tuple):
        return tuple(output.float() for output in outputs)
    return outputs.float()
