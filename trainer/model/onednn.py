"""oneDNN, torch's library of convolutions on a CPU: where it can be called directly, and two gaps in what it does.

Wide depthwise weights: oneDNN 3.12 (torch 2.14.1) has a depthwise kernel for the gradient of weights of at most three
columns; it computes a wider one as a dense convolution of 16 channels, which is 16 times the work. The columns of the
gradient are separate sums, so that a wide one can be computed in strips: 5x5 and 7x7 take a third to a fifth of the
time, and the sums are the same in another order.

One thread: with one thread and fewer than 16 images, torch gives a 1x1 convolution to a matrix product instead, which
takes twice the time. It asks only oneDNN if the convolution is dilated, and a dilation of one pixel moves nothing.

`python -m benchmarks.model_step` measures both.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # the name that every PyTorch program uses
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainer.model.join import is_channels_last

CAPABILITY = torch.backends.cpu.get_cpu_capability() if torch.backends.mkldnn.is_available() else ""
"""The vector instructions that oneDNN's kernels use here; empty if torch was built without oneDNN."""
STRIPS = {5: (3, 2), 7: (2, 3, 2)}
"""Columns of each strip by the width of the weight. A strip of three in the middle reads the map without a copy."""
FEWEST_CHANNELS = 48
"""Of a map that is worth strips; below it, more operators cost more than the kernel saves."""
FEWEST_POINTWISE = 24
"""Channels in and out of a 1x1 convolution in which oneDNN is faster than the matrix product."""
FEWEST_IMAGES = 16
"""From which torch asks oneDNN also with one thread (ConvParams::use_mkldnn in its Convolution.cpp)."""


def has_onednn(x: Tensor) -> bool:
    """Return whether oneDNN computes the convolutions of this map, on a CPU where its kernels were measured."""
    return (
        x.device.type == "cpu"
        and x.dtype is torch.float32
        and not torch.is_autocast_enabled("cpu")
        and CAPABILITY.startswith("AVX")
    )


def pointwise_dilation(x: Tensor, weight: Tensor) -> int:
    """Return the dilation with which a 1x1 convolution of this map trains fastest; each gives the same function."""
    # Maps in NCHW, which an NPU has, keep torch's own kernels: losses of NPUs and CPUs can be compared bit for bit.
    # Also with several threads, with which torch asks oneDNN anyway: a compiled network cannot look at their number.
    gains = x.shape[0] < FEWEST_IMAGES and min(weight.shape[:2]) >= FEWEST_POINTWISE
    return 2 if gains and has_onednn(x) and _trains(weight) and is_channels_last(x) else 1


def takes_strips(x: Tensor, weight: Tensor) -> bool:
    """Return whether `depthwise` is faster for this map than torch's own convolution, whose gradient it splits."""
    return (
        has_onednn(x)
        and _trains(weight)
        and weight.shape[-1] in STRIPS
        and x.shape[1] >= FEWEST_CHANNELS
        and x.shape[3] >= weight.shape[-1]
        and CAPABILITY == "AVX512"  # with AVX2, strips of 5x5 gain nothing
        and is_channels_last(x)
    )


def _trains(weight: Tensor) -> bool:
    return weight.requires_grad and torch.is_grad_enabled()


def depthwise(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve (N, C, H, W) by (C, 1, k, k), stride 1, padded SAME; the weight's gradient is computed in strips."""
    y: Tensor = _Depthwise.apply(x, weight)
    return y


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=x.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
        x, weight = ctx.saved_tensors
        half = weight.shape[-1] // 2
        of_x = _gradients(gradient, x, weight, half, half)[0] if ctx.needs_input_grad[0] else None
        return of_x, _of_weight(gradient, x, weight)


def _of_weight(gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of the weight, strip by strip."""
    kernel, width = weight.shape[-1], x.shape[3]
    half = kernel // 2
    strips, column = [], 0
    for columns in STRIPS[kernel]:
        left, right = half - column, column + columns - 1 - half  # columns of zeros that the strip reads on each side
        if left == right:
            read, padding = x, left
        else:
            read, padding = F.pad(x[..., max(-left, 0) : width + min(right, 0)], (max(left, 0), max(right, 0))), 0
        strip = weight.narrow(3, column, columns)
        strips.append(_gradients(gradient, read, strip, half, padding, of_weight=True)[1])
        column += columns
    return torch.cat(strips, 3)


def _gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, rows: int, columns: int, *, of_weight: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of the map, or of the weight, of a depthwise convolution padded by `rows` and `columns`."""
    result: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        gradient,
        x,
        weight,
        None,
        (1, 1),
        (rows, columns),
        (1, 1),
        False,
        (0, 0),
        x.shape[1],
        (not of_weight, of_weight, False),
    )
    return result
