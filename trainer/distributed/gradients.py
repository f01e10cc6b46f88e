"""Gradients of all parameters in one buffer per type: a captured step needs them at one place, and ranks exchange them.

It is what DistributedDataParallel does, but after the backward pass and not during it: a captured backward pass calls
no hooks. The bits are the same for two ranks; more are added in an order that depends on the place in the buffer.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

ALIGNMENT = 512
"""Bytes between the beginnings of gradients, as an accelerator's allocator has between tensors."""


class FlatGradients:
    """The gradient of each parameter becomes a part of a buffer, and stays there."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        by_type: dict[torch.dtype, list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            if parameter.requires_grad:
                by_type[parameter.dtype].append(parameter)
        self._flats: list[Tensor] = []
        for same_type in by_type.values():
            sizes = [-(-parameter.nbytes // ALIGNMENT) * ALIGNMENT // parameter.itemsize for parameter in same_type]
            flat = same_type[0].new_zeros(sum(sizes))
            self._flats.append(flat)
            for parameter, part in zip(same_type, flat.split(sizes), strict=True):
                # With the parameter's strides: kernels take both as they lie in memory.
                parameter.grad = part.as_strided(parameter.size(), parameter.stride())

    def zero(self) -> None:
        """Begin a step."""
        for flat in self._flats:
            flat.zero_()

    def average(self) -> None:
        """Give every rank the mean over the ranks."""
        if not dist.is_initialized():
            return
        for flat in self._flats:
            flat.mul_(1 / dist.get_world_size())
            dist.all_reduce(flat)
