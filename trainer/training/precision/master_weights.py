"""O2 without apex: fp16 weights and activations, fp32 batch norm and master weights, and a loss scale.

It does the same as apex's O2, for machines without apex for Ascend: apex has no package on an index, and its last
public version is of 2023.
"""

from typing import Any

import torch
from torch import Tensor, nn

from trainer.devices.device import Device
from trainer.training.precision.loss_scale import ScaledPrecision


class NativeO2(ScaledPrecision):
    """The optimizer updates fp32 copies of the fp16 weights, which are then rounded back into them.

    The model casts its own inputs and outputs. The copies are the optimizer's parameters, so that the state of this
    precision is only the loss scale.
    """

    def __init__(self, device: Device, loss_scale: float | str) -> None:
        super().__init__("O2-native", device, None, loss_scale)
        self._halves: list[Tensor] = []
        self._masters: list[Tensor] = []

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
        model.register_forward_pre_hook(_halve_inputs)
        model.register_forward_hook(_widen_outputs)
        return model

    @torch.no_grad()
    def step(
        self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], *, clip_norm: float, loss: Tensor
    ) -> Tensor:
        """Widen the gradients, update the masters unless there was an overflow, and round them into the weights."""
        self._widen_gradients()
        optimized = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        skipped = super().step(optimizer, optimized, clip_norm=clip_norm, loss=loss)
        torch._foreach_copy_(self._halves, self._masters)
        return skipped

    def _widen_gradients(self) -> None:
        """Copy into the masters' gradients, which stay in place: fused optimizers have made them parts of a buffer."""
        wide, narrow = [], []
        for half, master in zip(self._halves, self._masters, strict=True):
            if half.grad is not None:
                if master.grad is None:
                    master.grad = torch.empty_like(master)
                wide.append(master.grad)
                narrow.append(half.grad)
                # The optimizer's zero_grad knows only the masters.
                half.grad = None
        torch._foreach_copy_(wide, narrow)


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
