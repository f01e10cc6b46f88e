"""The steps between decoded image and network, with every random draw keyed by (seed, epoch, sample or step).

Crop, resize and flip run in the loader on uint8; normalisation runs on the device, so that a quarter of the bytes cross
the bus. Training and evaluation share one resize rule (antialiased), because a network trained on one and tested
on another loses accuracy for no reason.
"""

import hashlib
import random
import struct
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from trainer.model.loss import Targets
from trainer.seeds import derive_seed
from trainer.shared.config import TrainConfig


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
        mode, bilinear = InterpolationMode(config.interpolation), InterpolationMode.BILINEAR
        self._side, self._flip = config.image_size, config.flip
        scale = (config.crop_scale, 1.0)
        self._crop = v2.RandomResizedCrop(self._side, scale=scale, interpolation=mode, antialias=True)
        self._augment = {
            "none": v2.Identity(),
            # Small enough that a 6 stays a 6.
            "affine": v2.RandomAffine(10, translate=(0.06, 0.06), scale=(0.9, 1.1), interpolation=bilinear),
            "trivial": v2.TrivialAugmentWide(interpolation=bilinear),
            "rand": v2.RandAugment(interpolation=bilinear),
        }[config.augment]

    def __call__(self, image: Tensor, key: SampleKey) -> Tensor:
        """Return one sample's view of an image."""
        torch.default_generator.manual_seed(key.seed)
        view: Tensor = self._augment(self._crop(image))
        return view.flip(2) if key.uniform < self._flip else view

    def reduction(self, key: SampleKey, height: int, width: int) -> int:
        """Return by which of 1, 2, 4 and 8 an image's sides can be divided before its crop would have to be enlarged.

        The crop of the smaller image has the same part of its area, by the same draws.
        """
        if min(height, width) < 2 * self._side:
            return 1
        torch.default_generator.manual_seed(key.seed)
        crop = self._crop.make_params([torch.empty(1, 1, 1).expand(3, height, width)])
        smallest = min(crop["height"], crop["width"])
        return next((factor for factor in (8, 4, 2) if factor * self._side <= smallest), 1)


def eval_transform(config: TrainConfig) -> v2.Transform:
    """Return the same without a random draw: resize the shorter side, crop the centre."""
    mode = InterpolationMode(config.interpolation)
    resize = v2.Resize(resized_side(config.image_size, config.eval_crop), interpolation=mode, antialias=True)
    return v2.Compose([resize, v2.CenterCrop(config.image_size)])


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
