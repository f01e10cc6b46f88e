"""The operators that the arithmetic checks compare: each gives sums of products of two tensors."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_input, conv2d_weight

Shape = tuple[int, ...]
_SMALL, _WIDE = 2, 64


@dataclass(frozen=True)
class Operator:
    """One of the network's kinds of operators, in a small shape."""

    name: str
    terms: int
    """Products that are added up in one result."""
    compute: Callable[[Tensor, Tensor], Tensor]
    shapes: Callable[[int], tuple[Shape, Shape]]
    """Of both tensors; the argument is 2, or 64 for a result that keeps every core of a large device busy."""
    grows: bool = True
    """Whether the shapes depend on the argument."""
    is_sum: bool = False
    """Whether the second tensor is not read, or added."""
    is_matrix: bool = False
    """Whether a matrix unit computes it, which can round inputs and results of fp32 to fewer bits."""

    def small(self) -> tuple[Shape, Shape]:
        """Return the shapes for one of many calls."""
        return self.shapes(_SMALL)

    def wide(self) -> tuple[Shape, Shape]:
        """Return the shapes for one call that every core takes part in."""
        return self.shapes(_WIDE)


def _pointwise(images: Tensor, weight: Tensor) -> Tensor:
    return functional.conv2d(images, weight)


def _depthwise(images: Tensor, weight: Tensor) -> Tensor:
    return functional.conv2d(images, weight, padding=3, groups=16)


def _strided(images: Tensor, weight: Tensor) -> Tensor:
    return functional.conv2d(images, weight, stride=2)


def _input_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    result: Tensor = conv2d_input((len(gradient), 64, 12, 12), weight, gradient)
    return result


def _weight_gradient(gradient: Tensor, images: Tensor) -> Tensor:
    result: Tensor = conv2d_weight(images, (16, 1, 7, 7), gradient, padding=3, groups=16)
    return result


OPERATORS = (
    Operator("addition", 2, torch.add, lambda n: ((n, 4096), (n, 4096)), is_sum=True),
    Operator("multiplication", 1, torch.mul, lambda n: ((n, 4096), (n, 4096))),
    Operator("sum", 64, lambda a, _: a.sum(1), lambda n: ((n * 32, 64, 8), (1,)), is_sum=True),
    Operator("matrix product", 64, torch.mm, lambda n: ((n * 24, 64), (64, n * 24)), is_matrix=True),
    Operator("1x1 convolution", 64, _pointwise, lambda n: ((n, 64, 12, 12), (32, 64, 1, 1)), is_matrix=True),
    Operator("7x7 separable convolution", 49, _depthwise, lambda n: ((n, 16, 14, 14), (16, 1, 7, 7)), is_matrix=True),
    Operator("3x3 convolution, stride 2", 27, _strided, lambda n: ((n, 3, 25, 25), (32, 3, 3, 3)), is_matrix=True),
    Operator("gradient to the input", 32, _input_gradient, lambda n: ((n, 32, 12, 12), (32, 64, 1, 1)), is_matrix=True),
    Operator(
        "gradient to the weights",
        64,
        _weight_gradient,
        lambda _: ((1, 16, 8, 8), (1, 16, 8, 8)),
        grows=False,
        is_matrix=True,
    ),
)
"""PNASNet's convolutions are 1x1, separable, and in the stem 3x3 with stride 2. For none of these exist algorithms that
transform the numbers (Winograd, FFT), so that every implementation adds up the same products."""
