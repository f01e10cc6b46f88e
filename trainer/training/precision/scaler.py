"""A loss scale over a device's own scaler: backward, and an update that is left out where a gradient overflowed."""

from typing import Any

import torch
from torch import Tensor, nn

from trainer.devices.device import Device
from trainer.training.precision.finite import clipped_norm, not_finite
from trainer.training.precision.policy import INITIAL_DYNAMIC_SCALE, OVERFLOWS_OF_A_DYNAMIC_SCALE


class LossScaler:
    """Of a fixed scale, or one that adapts to overflow.

    A fixed one is given to the scaler anew after each step: torch_npu's own switch for it (`dynamic=False`) would also
    turn off the check for overflow.
    """

    def __init__(self, device: Device, loss_scale: float | str) -> None:
        self._static = None if loss_scale == "dynamic" else float(loss_scale)
        self._scaler: Any = device.grad_scaler(init_scale=self._static or INITIAL_DYNAMIC_SCALE)
        self.overflows = 0 if self._static else OVERFLOWS_OF_A_DYNAMIC_SCALE

    def backward(self, loss: Tensor) -> None:
        """Gradients of the scaled loss."""
        self._scaler.scale(loss).backward()

    def step(
        self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], *, clip_norm: float, loss: Tensor
    ) -> Tensor:
        """Unscale, clip, update unless loss or a gradient is not finite, and adapt the scale if it is dynamic.

        Args:
            parameters: the optimizer's, with gradients that are the same on all ranks.
            loss: this rank's.

        Returns:
            A bool scalar, the same on all ranks: whether the update was left out.
        """
        # The scaler judges gradients alone, so a loss that is not finite is made to show in one of them.
        poison = torch.where(not_finite(loss), torch.nan, 0.0)
        next(p.grad for p in parameters if p.grad is not None).add_(poison)
        self._scaler.unscale_(optimizer)
        # A norm that is not finite is not enough to know: an Ascend 910A never has one, its fp16 stops at 65,504 and
        # raises a flag that only its scaler reads.
        found = torch.stack(list(self._scaler._found_inf_per_device(optimizer).values())).sum() > 0
        skipped = found | ~torch.isfinite(clipped_norm(parameters, clip_norm))
        self._scaler.step(optimizer)
        self._scaler.update(self._static)
        return skipped

    def state_dict(self) -> dict[str, Any]:
        """Scale, and steps since it last overflowed."""
        return dict(self._scaler.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore both, but for a fixed scale, which is the run's own.

        torch_npu's scaler reads a `dynamic` that the state of another device's has not.
        """
        fixed = {} if self._static is None else {"scale": self._static}
        self._scaler.load_state_dict({**self._scaler.state_dict(), **state, **fixed})
