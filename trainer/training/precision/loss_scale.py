"""Updates that are left out, on all ranks alike, if a loss or gradient is not finite; and the loss scale of fp16.

The scale is the device's own scaler: backward on a scaled loss, and a step that checks the gradients for overflow.
"""

from typing import Any

import torch
from torch import Tensor, nn

from trainer.devices.device import Device
from trainer.distributed.process_group import any_rank

INITIAL_DYNAMIC_SCALE = 2.0**16
"""apex's and torch's first guess; overflow halves it until it fits."""
OVERFLOWS_OF_A_DYNAMIC_SCALE = 24
"""From the first guess down to 2^-8. If that still overflows, the gradients themselves are not finite."""


def clipped_norm(parameters: list[nn.Parameter], clip_norm: float) -> Tensor:
    """Clip the gradients' global norm to `clip_norm` (0: do not clip). Return the norm before."""
    if clip_norm:
        return nn.utils.clip_grad_norm_(parameters, clip_norm)
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def not_finite(*values: Tensor) -> Tensor:
    """Return a bool scalar, the same on all ranks: whether any of the scalars is not finite on any rank."""
    return any_rank(~torch.isfinite(torch.stack([value.detach().float() for value in values])).all())


class LossScaler:
    """A fixed loss scale, or one that adapts to overflow.

    A fixed scale is set again after each step: torch_npu's own switch for it (`dynamic=False`) would also turn off the
    check for overflow.
    """

    def __init__(self, device: Device, loss_scale: float | str) -> None:
        self._static = None if loss_scale == "dynamic" else float(loss_scale)
        self._scaler: Any = device.grad_scaler(init_scale=self._static or INITIAL_DYNAMIC_SCALE)
        self.overflows = 0 if self._static else OVERFLOWS_OF_A_DYNAMIC_SCALE

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of the scaled loss."""
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
        # The scaler checks only gradients, so a loss that is not finite is put into one of them.
        poison = torch.where(not_finite(loss), torch.nan, 0.0)
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
