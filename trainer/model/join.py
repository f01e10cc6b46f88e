"""A cell's sums of two branches each, side by side in one map; each number is written once in each direction.

`torch.cat` would copy every sum, and its gradient is a set of slices of one map, which each branch would copy for
itself. Here each sum is written at its place in the joined map, and the gradient is laid out sum by sum when its two
parts are added. These are the same numbers by fewer operators; compilation and export see the plain ones.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # the name that every PyTorch program uses
from torch import Tensor
from torch.autograd.function import once_differentiable


class JoinedSums:
    """Takes `count` sums of (N, C, H, W) one after the other, and returns them as one map (N, count * C, H, W)."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._sums: list[Tensor] = []
        self._joined = torch.empty(0)

    def add(self, x: Tensor, y: Tensor, keep_x: Tensor | None, keep_y: Tensor | None) -> Tensor:
        """Return x * keep_x + y * keep_y; None is a factor of one, and `keep_x` is None only if `keep_y` is.

        Read the sum before `rectify` overwrites it, by operators whose gradients do not need it.
        """
        total: Tensor
        if torch.compiler.is_compiling():
            total = (x if keep_x is None else x * keep_x) + (y if keep_y is None else y * keep_y)
        else:
            if not self._sums:
                self._joined = _empty_joined(x, self._count)
            place = self._joined.narrow(1, len(self._sums) * x.shape[1], x.shape[1])
            total = _Add.apply(place, x, y, (keep_x, keep_y))
        self._sums.append(total)
        return total

    def rectify(self) -> tuple[Tensor, Tensor]:
        """Return the ReLU of the joined map twice: its two readers' gradients then arrive apart."""
        if torch.compiler.is_compiling():
            rectified = F.relu(torch.cat(self._sums, 1))
            return rectified, rectified
        first, second = _Rectify.apply(self._joined, *self._sums)
        return first, second


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, place: Tensor, x: Tensor, y: Tensor, keep: tuple[Tensor | None, Tensor | None]) -> Tensor:
        keep_x, keep_y = keep
        ctx.save_for_backward(keep_x, keep_y)
        total = place.data  # autograd would take a write into a part of the joined map for a write into all its parts
        if keep_x is None:
            return torch.add(x, y, out=total)
        torch.mul(x, keep_x, out=total)
        return total.add_(y) if keep_y is None else total.addcmul_(y, keep_y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, y = (gradient if keep is None else gradient * keep for keep in ctx.saved_tensors)
        return None, x, y, None


class _Rectify(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, joined: Tensor, *sums: Tensor) -> tuple[Tensor, Tensor]:
        ctx.count = len(sums)
        ctx.set_materialize_grads(False)
        joined.data.relu_()
        ctx.save_for_backward(joined)
        return joined.data, joined.data

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        (rectified,) = ctx.saved_tensors
        read = [_by_sum(gradient, ctx.count) for gradient in gradients if gradient is not None]
        if not read:
            return None, *[None] * ctx.count
        laid_out = _empty_by_sum(rectified, ctx.count)
        if len(read) == 2:
            torch.add(*read, out=laid_out)
        else:
            laid_out.copy_(read[0])
        return None, *_mask_(laid_out, _by_sum(rectified, ctx.count)).unbind()


def _mask_(gradient: Tensor, rectified: Tensor) -> Tensor:
    """Return a ReLU's gradient in the layout of `gradient`, which may be overwritten."""
    masked: Tensor
    if gradient.device.type == "npu":
        # torch_npu (op-plugin for 2.9) has no form that writes into a given tensor; its result is contiguous already.
        masked = torch.ops.aten.threshold_backward(gradient, rectified, 0).contiguous()
    else:
        masked = torch.ops.aten.threshold_backward.grad_input(gradient, rectified, 0, grad_input=gradient)
    return masked


def _empty_joined(x: Tensor, count: int) -> Tensor:
    images, channels, *sides = x.shape
    memory_format = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    shape = images, count * channels, *sides
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)


def _by_sum(joined: Tensor, count: int) -> Tensor:
    """View a joined map as (count, N, C, H, W)."""
    view: Tensor = joined.unflatten(1, (count, -1))
    return view.transpose(0, 1)


def _empty_by_sum(joined: Tensor, count: int) -> Tensor:
    """Return an empty (count, N, C, H, W) whose maps are dense, in the layout of `joined`."""
    images, channels, height, width = joined.shape
    if is_channels_last(joined):
        return joined.new_empty(count, images, height, width, channels // count).permute(0, 1, 4, 2, 3)
    return joined.new_empty(count, images, channels // count, height, width)


def is_channels_last(x: Tensor) -> bool:
    """Return the layout that the strides tell, also of maps of one pixel, which are contiguous in both."""
    return x.stride(1) == 1 and x.stride(3) != 1
