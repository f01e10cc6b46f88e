"""The preparation of an evaluated image as tensor operators, so that it can be part of an exported network.

torch's resize of uint8 images is one operator (`_upsample_bilinear2d_aa`), which no other runtime has.
It computes with integers, and its roundings change probabilities in the third digit. Here the same integers come from
products of matrices, whose sums float64 holds exactly: the pixels are equal, bit for bit, in each runtime.
"""

from typing import Literal, cast

import torch
from torch import Tensor, nn

# ATen, UpSampleKernelAVXAntialias.h (Pillow's Resample.c has the same scheme): weights are 16-bit integers, scaled by
# the largest power of two, up to 2**22, at which the greatest weight still fits.
_WEIGHT_LIMIT = 2.0**15
_LARGEST_EXPONENT = 22


class EvaluationInput(nn.Module):
    """Resize the shorter side, crop the centre and normalise one image, as `EvalTransform` and `network_input` do.

    Args:
        image_size: side of the square result in pixels.
        resized_side: shorter side in pixels before the crop; at least `image_size`.
        interpolation: the resize filter.
        mean: of each channel, for images in [0, 1].
        std: of each channel, likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        image_size: int,
        resized_side: int,
        interpolation: Literal["bilinear", "bicubic"],
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.image_size, self.resized_side, self.interpolation = image_size, resized_side, interpolation
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Return float32 (1, 3, image_size, image_size) for a decoded image, uint8 (H, W, 3) of any size."""
        height, width = image.shape[0], image.shape[1]
        columns, column_unit = self._weights(width, across=height)
        rows, row_unit = self._weights(height, across=width)
        pixels = image.permute(2, 0, 1).to(torch.float64)
        pixels = _rounded(pixels @ columns.T, column_unit)
        pixels = _rounded(rows @ pixels, row_unit)
        return ((pixels.to(torch.float32) / 255.0 - self.mean) / self.std).unsqueeze(0)

    def _weights(self, length: int, *, across: int) -> tuple[Tensor, Tensor]:
        """Return the filter's integer weights, float64 (image_size, length), and the integer that stands for 1.

        A row belongs to one pixel of the crop, a column to one pixel of the original side.

        Args:
            length: this side of the image in pixels.
            across: its other side.
        """
        # `max` would fix which side is the shorter one when torch traces this.
        resized = cast("int", torch.sym_max(self.resized_side, self.resized_side * length // across))
        source = torch.arange(length, dtype=torch.float64)
        target = torch.arange(resized, dtype=torch.float64)
        one = torch.ones((), dtype=torch.float64)
        before, after = one.mul(length), one.mul(resized)
        stretch = (before / after).clamp(min=1.0)
        centres = (before / after * (target + 0.5)).unsqueeze(1)
        reach = stretch * (1.0 if self.interpolation == "bilinear" else 2.0)
        first = (centres - reach + 0.5).clamp(min=0.0).floor()
        end = torch.minimum((centres + reach + 0.5).floor(), before)
        weights = self._filter((source + 0.5 - centres) * (1.0 / stretch))
        weights = torch.where((source >= first) & (source < end), weights, 0.0)
        weights = weights / weights.sum(1, keepdim=True)
        powers = 2.0 ** torch.arange(1, _LARGEST_EXPONENT + 1, dtype=torch.float64)
        unit = 2.0 ** ((weights.max() * powers + 0.5).floor() < _WEIGHT_LIMIT).to(torch.float64).sum()
        weights = weights.sign() * (weights.abs() * unit + 0.5).floor()
        start = ((after - self.image_size) / 2.0).round().to(torch.int64)
        return weights[start + torch.arange(self.image_size)], unit

    def _filter(self, distance: Tensor) -> Tensor:
        distance = distance.abs()
        if self.interpolation == "bilinear":
            return (1.0 - distance).clamp(min=0.0)
        # Keys' cubic with a = -0.5, which torch and Pillow use for antialiased resizing.
        near = (1.5 * distance - 2.5) * distance * distance + 1.0
        far = ((distance - 5.0) * distance + 8.0) * distance * -0.5 + 2.0
        return torch.where(distance < 1.0, near, torch.where(distance < 2.0, far, 0.0))


def _rounded(sums: Tensor, unit: Tensor) -> Tensor:
    return (sums / unit + 0.5).floor().clamp(0.0, 255.0)
