"""Whether losses and gradients are numbers: what decides if a step's update is left out, on all ranks alike."""

import torch
from torch import Tensor, nn

from trainer.distributed.process_group import any_rank


def clipped_norm(parameters: list[nn.Parameter], clip_norm: float) -> Tensor:
    """The global norm of the gradients before they are clipped to `clip_norm` (0: left as they are)."""
    if clip_norm:
        return nn.utils.clip_grad_norm_(parameters, clip_norm)
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def not_finite(*values: Tensor) -> Tensor:
    """A bool scalar, the same on all ranks: whether any of the scalars is not finite on any of them."""
    return any_rank(~torch.isfinite(torch.stack([value.detach().float() for value in values])).all())
