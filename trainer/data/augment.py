"""The steps between decoded image and network, with every random draw keyed by (seed, epoch, sample or step).

Crop, resize and flip run in the loader on uint8; normalisation runs on the device, so that a quarter of the bytes cross
the bus. Training and evaluation share one resize rule (antialiased), because a network trained on one and tested
on another loses accuracy for no reason.

Crop and resize give the bits of torchvision's v2 transforms, but do not need them: torchvision imports torch._dynamo,
which takes half as long as the import of torch. Only the further augmentations are torchvision's. On x86 without AVX2
the bits are other ones: there torchvision resizes bilinear in float32, and a value can differ by 1 (seen in a tenth).
"""

import hashlib
import importlib
import math
import random
import struct
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from trainer.model.loss import Targets
from trainer.seeds import derive_seed
from trainer.shared.config import TrainConfig
from trainer.shared.program import without_garbage_collector

_ASPECT_RATIOS = (3 / 4, 4 / 3)
"""Of a training crop, as in all published results (Inception's, arXiv:1409.4842)."""
_LOG_RATIOS = torch.tensor(_ASPECT_RATIOS).log().tolist()
_TRIES = 10
"""Random crops to draw until one lies within the image."""


class SampleKey(NamedTuple):
    """The randomness of one sample in one epoch: a generator's seed and a uniform number in [0, 1)."""

    seed: int
    uniform: float


def sample_key(*, seed: int, epoch: int, sample: int) -> SampleKey:
    """Return the randomness of one sample in one epoch, independent of its loader process and its batch."""
    digest = hashlib.blake2b(struct.pack("<3q", seed, epoch, sample), digest_size=16).digest()
    generator_seed, draw = struct.unpack("<QQ", digest)
    return SampleKey(generator_seed >> 1, (draw >> 11) / 2**53)


class TrainTransform:
    """Crop, resize, augment and mirror an image of any size: uint8 (3, H, W) -> uint8 (3, image_size, image_size).

    It draws from torch's default CPU generator, which it seeds for each image.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._side, self._flip = config.image_size, config.flip
        self._smallest_share, self._interpolation = config.crop_scale, config.interpolation
        self._augment = _augmentation(config.augment)

    def __call__(self, image: Tensor, key: SampleKey) -> Tensor:
        """Return one sample's view of an image."""
        torch.default_generator.manual_seed(key.seed)
        top, left, height, width = _random_crop(*image.shape[1:], smallest_share=self._smallest_share)
        part = image[:, top : top + height, left : left + width]
        view = self._augment(_resize(part, self._side, self._side, self._interpolation))
        return view.flip(2) if key.uniform < self._flip else view

    def reduction(self, key: SampleKey, height: int, width: int) -> int:
        """Return by which of 1, 2, 4 and 8 an image's sides can be divided before its crop would have to be enlarged.

        The crop of the smaller image has the same part of its area, by the same draws.
        """
        if min(height, width) < 2 * self._side:
            return 1
        torch.default_generator.manual_seed(key.seed)
        crop = _random_crop(height, width, smallest_share=self._smallest_share)
        smallest = min(crop.height, crop.width)
        return next((factor for factor in (8, 4, 2) if factor * self._side <= smallest), 1)


class EvalTransform:
    """Resize the shorter side and crop the centre: uint8 (3, H, W) -> uint8 (3, image_size, image_size)."""

    def __init__(self, config: TrainConfig) -> None:
        self._side, self._interpolation = config.image_size, config.interpolation
        self._resized_side = resized_side(config.image_size, config.eval_crop)

    def __call__(self, image: Tensor) -> Tensor:
        """Return the part of an image that an evaluation sees."""
        shorter = min(image.shape[1:])
        height, width = (int(self._resized_side * side / shorter) for side in image.shape[1:])
        top, left = (round((side - self._side) / 2) for side in (height, width))
        resized = _resize(image, height, width, self._interpolation)
        return resized[:, top : top + self._side, left : left + self._side]


def resized_side(image_size: int, eval_crop: float) -> int:
    """Return the shorter side in pixels before the centre crop, rounded down as the seed does (331/.875 = 378)."""
    # The summand undoes division error: 288/.96 must be 300.
    return int(image_size / eval_crop + 1e-6)


def device_transform(
    images: Tensor, *, mean: Sequence[float], std: Sequence[float], channels_last: bool = False
) -> Tensor:
    """Normalise on the images' own device; the host does not wait for it.

    Args:
        images: uint8 (N, 3, H, W).
        mean: of each channel, for images in [0, 1].
        std: of each channel, likewise.
        channels_last: return NHWC strides.

    Returns:
        float32 (N, 3, H, W).
    """
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    scaled = images.to(torch.float32, memory_format=memory_format).div_(255.0)
    for channel, (centre, deviation) in enumerate(zip(mean, std, strict=True)):
        if centre != 0.0 or deviation != 1.0:
            # Plain numbers: a tensor of means would be a blocking copy to the device at every step.
            scaled[:, channel].sub_(centre).div_(deviation)
    return scaled


def mix(
    images: Tensor,
    labels: Tensor,
    *,
    mixup: float,
    cutmix: float,
    seed: int,
    epoch: int,
    step: int,
    batch: int,
    rank: int,
) -> tuple[Tensor, Targets]:
    """Mix each image with its neighbour in the batch, by mixup or CutMix; if both are on, each half of the time.

    Only inputs and targets change, so it works with any number of heads. Neighbours are random, since the epoch's order
    is. Draws are made on the host, so the device never waits.

    Args:
        images: float (N, C, H, W).
        labels: int64 (N,).
        mixup: alpha of arXiv:1710.09412; 0 is off.
        cutmix: alpha of arXiv:1905.04899; 0 is off.
        batch: number of the batch within its step, from 0.
    """
    draw = random.Random(derive_seed("mix", seed, epoch, step, batch, rank))
    if mixup == 0 and cutmix == 0:
        return images, Targets(labels)
    neighbours, other = images.roll(1, 0), labels.roll(1, 0)
    if mixup > 0 and (cutmix == 0 or draw.random() < 0.5):
        share = draw.betavariate(mixup, mixup)
        return torch.lerp(neighbours, images, share), Targets(labels, other, share, 1 - share)
    # A box of the share 1 - Beta(alpha, alpha) around a uniform centre, clipped to the image.
    height, width = images.shape[2:]
    side = (1 - draw.betavariate(cutmix, cutmix)) ** 0.5
    y, x = draw.randrange(height), draw.randrange(width)
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    top, bottom = max(y - half_height, 0), min(y + half_height, height)
    left, right = max(x - half_width, 0), min(x + half_width, width)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = neighbours[:, :, top:bottom, left:right]
    share = 1 - (bottom - top) * (right - left) / (height * width)
    return mixed, Targets(labels, other, share, 1 - share)


class _Crop(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def _random_crop(height: int, width: int, *, smallest_share: float) -> _Crop:
    """Draw the part of an image that training sees, as torchvision's RandomResizedCrop does, by the same draws.

    Args:
        smallest_share: of the image's area.
    """
    for _ in range(_TRIES):
        area = height * width * torch.empty(1).uniform_(smallest_share, 1.0).item()
        ratio = torch.empty(1).uniform_(*_LOG_RATIOS).exp().item()
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(torch.randint(height - crop_height + 1, (1,)))
            return _Crop(top, int(torch.randint(width - crop_width + 1, (1,))), crop_height, crop_width)
    # The image is too long: the largest part of its centre that has an allowed ratio.
    narrowest, widest = _ASPECT_RATIOS
    crop_width, crop_height = min(width, round(height * widest)), min(height, round(width / narrowest))
    return _Crop((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)


def _resize(image: Tensor, height: int, width: int, interpolation: str) -> Tensor:
    """Return an image, uint8 (3, H, W), in another size; the filter becomes wider where the image becomes smaller."""
    if image.shape[1:] == (height, width):
        return image
    # A decoder's pixels lie in the order (H, W, 3). With the batch dimension in front of that order, ATen sees it and
    # keeps it; in front of (3, H, W), ATen would reorder the pixels (torch issue 68430).
    images = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    return interpolate(images, (height, width), mode=interpolation, align_corners=False, antialias=True)[0]


def _augmentation(name: str) -> Callable[[Tensor], Tensor]:
    """Return what `--augment` does to a view."""
    if name == "none":
        return _unchanged
    v2 = _torchvision_transforms()
    bilinear = v2.InterpolationMode.BILINEAR
    augmentation: Callable[[Tensor], Tensor] = {
        # Small enough that a 6 stays a 6.
        "affine": partial(v2.RandomAffine, 10, translate=(0.06, 0.06), scale=(0.9, 1.1)),
        "trivial": v2.TrivialAugmentWide,
        "rand": v2.RandAugment,
    }[name](interpolation=bilinear)
    return augmentation


@cache
def _torchvision_transforms() -> Any:
    """Import torchvision's transforms, which have no types."""
    with without_garbage_collector():
        return importlib.import_module("torchvision.transforms.v2")


def _unchanged(view: Tensor) -> Tensor:
    return view
