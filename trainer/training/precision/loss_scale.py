"""A loss scale, for fp16: it does not have fp32's range.

The scale is the device's own scaler: backward on a scaled loss, and a step that checks the gradients for overflow.
"""

from typing import Any

import torch
from torch import Tensor, nn

from trainer.devices.device import Device
from trainer.distributed.process_group import any_rank
from trainer.training.precision.precision import Precision, clipped_norm, not_finite

INITIAL_DYNAMIC_SCALE = 2.0**16
"""apex's and torch's first guess; overflow halves it until it fits."""
GROWTH, BACKOFF, GROWTH_INTERVAL = 2.0, 0.5, 2000
"""torch's and torch_npu's: double a dynamic scale after this many steps without overflow, and halve it at one."""
OVERFLOWS_OF_A_DYNAMIC_SCALE = 24
"""From the first guess down to 2^-8. If that still overflows, the gradients themselves are not finite."""


class ScaledPrecision(Precision):
    """A fixed loss scale, or one that adapts to overflow.

    A fixed scale is set again after each step: torch_npu's own switch for it (`dynamic=False`) would also turn off the
    check for overflow.
    """

    def __init__(self, name: str, device: Device, dtype: torch.dtype | None, loss_scale: float | str) -> None:
        super().__init__(name, device, dtype)
        self._static = None if loss_scale == "dynamic" else float(loss_scale)
        self._scaler: Any = device.grad_scaler(init_scale=self._static or INITIAL_DYNAMIC_SCALE)
        self.overflows = 0 if self._static else OVERFLOWS_OF_A_DYNAMIC_SCALE

    def backward(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Compute the gradients of the scaled loss."""
        self._scaler.scale(loss).backward()

    def step(
        self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], *, clip_norm: float, loss: Tensor
    ) -> Tensor:
        """Unscale, clip, update unless loss or a gradient is not finite, and adapt the scale if it is dynamic."""
        # The scaler checks only gradients, so a loss that is not finite is put into one of them.
        poison = torch.where(any_rank(not_finite(loss)), torch.nan, 0.0)
        next(p.grad for p in parameters if p.grad is not None).add_(poison)
        self._scaler.unscale_(optimizer)
        # The norm is not enough to know: on an Ascend 910A it is always finite. Its fp16 stops at 65,504 and raises a
        # flag that only its scaler reads.
        overflow = torch.stack(list(self._scaler._found_inf_per_device(optimizer).values())).sum() > 0
        skipped = overflow | ~torch.isfinite(clipped_norm(parameters, clip_norm))
        self._scaler.step(optimizer)
        self._scaler.update(self._static)
        return skipped

    def state_dict(self) -> dict[str, Any]:
        """Return the scale, and the steps since it last overflowed."""
        return dict(self._scaler.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore both; a fixed scale stays the run's own.

        torch_npu's scaler reads a key `dynamic`, which the state of another device's scaler does not have.
        """
        fixed = {} if self._static is None else {"scale": self._static}
        self._scaler.load_state_dict({**self._scaler.state_dict(), **state, **fixed})


class DeviceScaledPrecision(Precision):
    """The same scale as `ScaledPrecision`, for a captured step: the host never reads whether gradients overflowed.

    An Ascend 910A shows an overflow only in a flag of its hardware, which this does not read.
    """

    def __init__(self, name: str, device: Device, dtype: torch.dtype | None, loss_scale: float | str) -> None:
        super().__init__(name, device, dtype)
        self._is_dynamic = loss_scale == "dynamic"
        self._scale = torch.tensor(INITIAL_DYNAMIC_SCALE if self._is_dynamic else float(loss_scale))
        self._good_steps = torch.zeros((), dtype=torch.int32)
        self.overflows = OVERFLOWS_OF_A_DYNAMIC_SCALE if self._is_dynamic else 0

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Move the scale to the model's device."""
        device = next(model.parameters()).device
        self._scale, self._good_steps = self._scale.to(device), self._good_steps.to(device)
        return super().prepare(model, optimizer)

    def backward(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Compute the gradients of the scaled loss."""
        (loss * self._scale).backward()

    def check(self, parameters: list[nn.Parameter], *, clip_norm: float, loss: Tensor) -> Tensor:
        """Unscale and clip the gradients. Return whether one of them, their norm or the loss is not finite."""
        overflow = torch.zeros_like(self._scale)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, overflow, self._scale.reciprocal())
        return (overflow > 0) | super().check(parameters, clip_norm=clip_norm, loss=loss)

    def update_weights(self, optimizer: torch.optim.Optimizer, skipped: Tensor) -> None:
        """Update the weights unless the bool scalar `skipped` is true, and adapt the scale if it is dynamic."""
        super().update_weights(optimizer, skipped)
        if self._is_dynamic:
            torch._amp_update_scale_(self._scale, self._good_steps, skipped.float(), GROWTH, BACKOFF, GROWTH_INTERVAL)

    def state_dict(self) -> dict[str, Any]:
        """Return the scale, and the steps since it last overflowed."""
        return {"scale": self._scale.item(), "_growth_tracker": self._good_steps.item()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore both, in place; a fixed scale stays the run's own."""
        if self._is_dynamic:
            self._scale.fill_(state["scale"])
        self._good_steps.fill_(state["_growth_tracker"])
