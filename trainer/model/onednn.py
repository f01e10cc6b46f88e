"""oneDNN, torch's library of convolutions on a CPU: where it can be called directly, and three gaps in what it does.

Wide depthwise weights: oneDNN 3.12 (torch 2.14.1) has a depthwise kernel for the gradient of weights of at most three
columns; it computes a wider one as a dense convolution of 16 channels, which is 16 times the work. The columns of the
gradient are separate sums, so that a wide one can be computed in strips: 5x5 and 7x7 take a third to a fifth of the
time, and the sums are the same in another order.

One thread: with one thread and fewer than 16 images, torch gives a 1x1 convolution to a matrix product instead, which
takes twice the time. It asks only oneDNN if the convolution is dilated, and a dilation of one pixel moves nothing. With
a stride of 2 torch asks oneDNN anyway.

Many channels: a convolution puts its weight into oneDNN's order, and the weight's gradient out of it, at each step. A
1x1 convolution of an NHWC map is a product of matrices, which oneDNN reads as they lie; of wide weights its products
take two thirds of the time of the convolution's gradients.

`python -m benchmarks.model_step` measures all three.
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
WIDE = 864
"""Channels into a 1x1 convolution from which products of matrices are the faster gradients."""
SMALL_MAP = 512
"""Pixels of all images below which a product is the faster forward pass too: they pay for the order of a weight."""
FEWEST_POINTWISE = 24
"""Channels in and out of a 1x1 convolution in which oneDNN is faster than the matrix product."""
DILATION = 2
"""Of a 1x1 convolution for which torch is to ask oneDNN."""
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
    """Return the dilation with which a 1x1 convolution of stride 1 trains fastest; each gives the same function."""
    # Maps in NCHW, which an NPU has, keep torch's own kernels: losses of NPUs and CPUs can be compared bit for bit.
    # Also with several threads, with which torch asks oneDNN anyway: a compiled network cannot look at their number.
    gains = x.shape[0] < FEWEST_IMAGES and min(weight.shape[:2]) >= FEWEST_POINTWISE
    return DILATION if gains and _trains_in_nhwc(x, weight) else 1


def takes_products(x: Tensor, weight: Tensor) -> bool:
    """Return whether `pointwise` is faster for this map than a convolution; compiled networks keep the convolution."""
    return (
        weight.shape[1] >= WIDE
        and CAPABILITY == "AVX512"  # not measured on others
        and not torch.compiler.is_compiling()
        and _trains_in_nhwc(x, weight)
    )


def takes_strips(x: Tensor, weight: Tensor) -> bool:
    """Return whether `depthwise` is faster for this map than torch's own convolution, whose gradient it splits."""
    return (
        weight.shape[-1] in STRIPS
        and x.shape[1] >= FEWEST_CHANNELS
        and x.shape[3] >= weight.shape[-1]
        and CAPABILITY == "AVX512"  # with AVX2, strips of 5x5 gain nothing
        and _trains_in_nhwc(x, weight)
    )


def _trains_in_nhwc(x: Tensor, weight: Tensor) -> bool:
    """Return whether oneDNN trains this weight, on a map in the layout for which the ways here were measured."""
    return weight.requires_grad and torch.is_grad_enabled() and has_onednn(x) and is_channels_last(x)


def pointwise(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve (N, in, H, W) in NHWC by (out, in, 1, 1); the gradients are products of matrices."""
    y: Tensor = _Pointwise.apply(x, weight)
    return y


class _Pointwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        if x.shape[0] * x.shape[2] * x.shape[3] < SMALL_MAP:
            return _as_map(_product(_pixels(x), weight.flatten(1)), x)
        return F.conv2d(x, weight, dilation=DILATION)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
        x, weight = ctx.saved_tensors
        pixels = _pixels(gradient)
        of_x = _as_map(_product(pixels, weight.flatten(1).t()), x) if ctx.needs_input_grad[0] else None
        # With the strides of its weight: DistributedDataParallel copies any other gradient.
        return of_x, _product(pixels.t(), _pixels(x).t()).as_strided(weight.shape, weight.stride())


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """Return (rows, in) times the transpose of (out, in), by the operator that torch's compiler has for it on a CPU."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return y


def _pixels(x: Tensor) -> Tensor:
    """Return (N, C, H, W) as (N * H * W, C), a view of NHWC."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def _as_map(pixels: Tensor, like: Tensor) -> Tensor:
    images, _, height, width = like.shape
    return pixels.view(images, height, width, -1).permute(0, 3, 1, 2)


def depthwise(x: Tensor, weight: Tensor, stride: int, padding: tuple[int, int]) -> Tensor:
    """Convolve (N, C, H, W) by (C, 1, k, k) with rows and columns of zeros on each side; train the weight in strips."""
    y: Tensor = _Depthwise.apply(x, weight, stride, padding)
    return y


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, None, stride, padding, groups=x.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = _gradients(gradient, x, weight, ctx.stride, ctx.padding)[0]
        return of_x, _of_weight(gradient, x, weight, ctx.stride, ctx.padding), None, None


def _of_weight(gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: tuple[int, int]) -> Tensor:
    """Return the gradient of the weight, strip by strip."""
    kernel, (rows, columns) = weight.shape[-1], padding
    below, right = (
        stride * (out - 1) + kernel - before - side
        for out, before, side in zip(gradient.shape[2:], padding, x.shape[2:], strict=True)
    )
    strips, column = [], 0
    for width in STRIPS[kernel]:
        # Lines of zeros that the strip reads on each side; lines that it leaves out if they are fewer than none.
        around = columns - column, right + column + width - kernel
        if stride == 2:  # oneDNN has kernels for maps that bring their zeros along, as most strips must anyway
            read, zeros = F.pad(x, (*around, rows, below)), (0, 0)
        elif around[0] == around[1]:
            read, zeros = x, (rows, around[0])
        else:
            read, zeros = F.pad(x, around), (rows, 0)
        strips.append(_gradients(gradient, read, weight.narrow(3, column, width), stride, zeros, of_weight=True)[1])
        column += width
    return torch.cat(strips, 3)


def _gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: tuple[int, int], *, of_weight: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of the map, or of the weight, of a depthwise convolution."""
    result: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        gradient,
        x,
        weight,
        None,
        (stride, stride),
        padding,
        (1, 1),
        False,
        (0, 0),
        x.shape[1],
        (not of_weight, of_weight, False),
    )
    return result
