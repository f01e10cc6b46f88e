"""The running means and variances of all batch norms as one tensor, so that they are kept, undone and shared at once.

They are the one part of the state that differs between ranks while they train, and the one that a forward pass changes
before it is known whether the step is any good.
"""

import torch
from torch import Tensor, nn


class BatchStatistics:
    """`flat`, fp32 (n,): every floating-point buffer of `model`, which become views of it.

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

    def keep(self) -> None:
        """Remember them as they are before a step."""
        self._before.copy_(self.flat)

    def undo(self, wanted: Tensor) -> None:
        """Go back to what was kept, where the bool scalar `wanted` says so; the host does not wait to know."""
        torch.where(wanted, self._before, self.flat, out=self.flat)
