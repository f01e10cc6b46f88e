"""The running means and variances of all batch norms as one tensor, to be saved, undone and averaged at once.

They are the only part of the state that differs between ranks during training. A forward pass changes them before it
is known whether the step's update is applied.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn


class BatchStatistics:
    """`flat`, fp32 (n,): every floating-point buffer of `model`; the buffers become views of it.

    Made after the model is on its device and before it is wrapped or copied: copies share their own tensor.
    """

    def __init__(self, model: nn.Module) -> None:
        owners = [
            (module, name, buffer)
            for module in model.modules()
            for name, buffer in module.named_buffers(recurse=False)
            if buffer.is_floating_point()
        ]
        self.flat = torch.cat([buffer.flatten() for _, _, buffer in owners])
        self._before = torch.empty_like(self.flat)
        sizes = [buffer.numel() for _, _, buffer in owners]
        for (module, name, buffer), view in zip(owners, self.flat.split(sizes), strict=True):
            setattr(module, name, view.view_as(buffer))

    def snapshot(self) -> None:
        """Remember the statistics as they are before a step."""
        self._before.copy_(self.flat)

    def undo(self, skipped: Tensor) -> None:
        """Restore the snapshot if the bool scalar `skipped` is true; the host does not wait for its value."""
        torch.where(skipped, self._before, self.flat, out=self.flat)

    def average(self) -> None:
        """Give every rank the mean over ranks of each running mean and variance, in one reduction.

        Without it, each rank would score, and rank 0 would save, statistics that come only from its own images.
        """
        if dist.is_initialized():
            dist.all_reduce(self.flat)
            self.flat /= dist.get_world_size()
