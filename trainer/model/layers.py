"""The network's primitive layers, strided as TensorFlow's SAME strides, without a zero-pad operator.

Published code emulates SAME by padding and cropping. That costs two full copies of a feature map per layer, and is
exact for only one parity of the input's side. Here each layer looks at its input's height and width and chooses the
convolution's or pool's own padding (derivation and measurements: TensorFlow pads k - 1 pixels symmetrically when the
side is odd, k - 2 with one less at the top and left when it is even).

`padding="seed"` is the function of the Ascend ModelZoo's PnasNet5Large, which deleted pads and crops alike: every side
is treated as if it were odd, and both paths of a factorized reduction read the even pixels.
"""

from collections import OrderedDict
from typing import Literal, get_args

import torch
import torch.nn.functional as F  # noqa: N812  # the name that every PyTorch program uses
from torch import Tensor, nn

from trainer.model.onednn import depthwise, pointwise, pointwise_dilation, takes_products, takes_strips

Padding = Literal["exact", "seed"]
PADDINGS: tuple[Padding, ...] = get_args(Padding)

BATCH_NORM_EPS = 1e-3  # TensorFlow slim nasnet.py, batch_norm_epsilon


class BatchNorm2d(nn.BatchNorm2d):
    """A batch normalisation that does not count its batches: the network counts the batches of all its norms at once.

    Its momentum is fixed, so that nothing but the files reads the count, and each norm's own would cost an operator.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name in nn.BatchNorm2d
        """Normalise (N, C, H, W) by the batch's statistics in training, else by the running ones."""
        return F.batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.momentum or 0.0,
            self.eps,
        )


def batch_norm(channels: int) -> BatchNorm2d:
    """Return a batch normalisation with the epsilon of the published weights' training."""
    return BatchNorm2d(channels, eps=BATCH_NORM_EPS)


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution of stride 1 or 2: (N, in, H, W) -> (N, out, ceil(H / stride), ceil(W / stride))."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name in nn.Conv2d
        """Convolve, by the faster kernel of a CPU; with a stride of 2 torch finds it by itself."""
        if self.stride != (1, 1):
            return F.conv2d(input, self.weight, self.bias, self.stride)
        if takes_products(input, self.weight):
            return pointwise(input, self.weight)
        return F.conv2d(input, self.weight, self.bias, dilation=pointwise_dilation(input, self.weight))


class EvenPixelConv2d(nn.Conv2d):
    """A 1x1 convolution of the pixels 0, 2, 4, ...: (N, in, H, W) -> (N, out, ceil(H/2), ceil(W/2)).

    A 1x1 average pool picks the pixels: the gradient of a slice is never channels-last and slows every layer before it.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1, bias=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name in nn.Conv2d
        """Pick, then convolve."""
        return F.conv2d(F.avg_pool2d(input, 1, 2), self.weight, self.bias)


def even_pixels(in_channels: int, out_channels: int) -> nn.Conv2d:
    """Return a 1x1 convolution of the pixels 0, 2, 4, ... without bias."""
    # PyTorch's CPU backward of a strided 1x1 convolution of fewer channels than a vector register holds writes past
    # its buffer in channels-last layout (2.9.0 and 2.14.1; on AVX-512 below 16, aborts within a few calls).
    narrow = in_channels < 16
    return EvenPixelConv2d(in_channels, out_channels) if narrow else PointwiseConv2d(in_channels, out_channels, 2)


class OddPixelConv2d(nn.Conv2d):
    """A 1x1 convolution of the pixels 1, 3, 5, ...: (N, in, H, W) -> (N, out, ceil(H/2), ceil(W/2)).

    An odd side has one odd pixel fewer than even ones; the missing last line is zero, as in TensorFlow.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1, stride=2, padding=1, bias=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name in nn.Conv2d
        """Start one pixel early, so that the grid falls on the odd pixels, and drop the output of that line."""
        return super().forward(input)[:, :, 1:, 1:]


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution of stride 1 or 2, padded SAME: (N, C, H, W) -> (N, C, ceil(H / s), ceil(W / s))."""

    def __init__(self, channels: int, kernel: int, stride: int, padding: Padding) -> None:
        super().__init__(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False)
        self.shifts_even_sides = stride == 2 and padding == "exact"

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name in nn.Conv2d
        """Convolve; at an even side start two pixels early and drop the first line, which moves the grid by one."""
        rows, columns = ((side + 1) % 2 * self.shifts_even_sides for side in input.shape[2:])
        half = self.kernel_size[0] // 2
        padding = half + rows, half + columns
        if takes_strips(input, self.weight):
            y = depthwise(input, self.weight, self.stride[0], padding)
        else:
            y = F.conv2d(input, self.weight, None, self.stride, padding, groups=self.groups)
        return F.pad(y, (-columns, 0, -rows, 0)) if rows or columns else y


class MaxPool2d(nn.Module):
    """A 3x3 max-pool of stride 1 or 2, padded SAME: (N, C, H, W) -> (N, C, ceil(H / s), ceil(W / s))."""

    def __init__(self, stride: int, padding: Padding) -> None:
        super().__init__()
        self.stride = stride
        self.shifts_even_sides = stride == 2 and padding == "exact"

    def forward(self, x: Tensor) -> Tensor:
        """Pool; at an even side the window leaves the map only at the bottom and right, as ceil_mode allows."""
        if not self.shifts_even_sides:
            return F.max_pool2d(x, 3, self.stride, padding=1)
        rows, columns = (side % 2 for side in x.shape[2:])
        return F.max_pool2d(x, 3, self.stride, padding=(rows, columns), ceil_mode=True)


class Separable(nn.Module):
    """Twice depthwise, pointwise, batch norm, with a ReLU before the second time; the first ReLU is the caller's.

    (N, in, H, W), rectified -> (N, out, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, padding: Padding) -> None:
        super().__init__()
        self.separable_1 = _depthwise_pointwise(in_channels, out_channels, kernel, stride, padding)
        self.bn_sep_1 = batch_norm(out_channels)
        self.separable_2 = _depthwise_pointwise(out_channels, out_channels, kernel, 1, padding)
        self.bn_sep_2 = batch_norm(out_channels)

    def forward(self, rectified: Tensor) -> Tensor:
        """Apply both halves; batch norm's backward needs only its input, so the ReLU can overwrite its output."""
        x: Tensor = self.bn_sep_1(self.separable_1(rectified))
        y: Tensor = self.bn_sep_2(self.separable_2(F.relu_(x)))
        return y


class Projection(nn.Module):
    """A 1x1 convolution of stride 1 or 2 and batch norm: changes the channels and may halve the sides.

    (N, in, H, W) -> (N, out, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = (
            even_pixels(in_channels, out_channels) if stride == 2 else PointwiseConv2d(in_channels, out_channels)
        )
        self.bn = batch_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Project and normalise."""
        y: Tensor = self.bn(self.conv(x))
        return y


class FactorizedReduction(nn.Module):
    """Halves the sides of a rectified map: half of the channels from its even pixels, half from its odd ones.

    (N, in, H, W) -> (N, out, ceil(H / 2), ceil(W / 2)).
    """

    def __init__(self, in_channels: int, out_channels: int, padding: Padding) -> None:
        super().__init__()
        even = out_channels // 2
        # The seed picks its pixels first; a strided convolution rounds otherwise.
        first, odd = (even_pixels, OddPixelConv2d) if padding == "exact" else (EvenPixelConv2d, EvenPixelConv2d)
        self.path_1 = nn.Sequential(OrderedDict(conv=first(in_channels, even)))
        self.path_2 = nn.Sequential(OrderedDict(conv=odd(in_channels, out_channels - even)))
        self.final_path_bn = batch_norm(out_channels)

    def forward(self, rectified: Tensor) -> Tensor:
        """Sample, project, join and normalise."""
        x: Tensor = self.final_path_bn(torch.cat((self.path_1(rectified), self.path_2(rectified)), 1))
        return x


def _depthwise_pointwise(
    in_channels: int, out_channels: int, kernel: int, stride: int, padding: Padding
) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            depthwise_conv2d=DepthwiseConv2d(in_channels, kernel, stride, padding),
            pointwise_conv2d=PointwiseConv2d(in_channels, out_channels),
        )
    )
