"""Batches of decoded, augmented images: the same bits for any number of loader processes, devices and resumptions.

A loader process makes a whole batch at a time, so that only finished uint8 batches cross process borders. A bad image
comes back as a value: the training process reacts to it, so that its line is the last one shown.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.data.augment import EvalTransform, TrainTransform, device_transform, sample_key
from trainer.data.bad_images import BadImage, BadImageError, BadImages, allowed_bad_images
from trainer.data.content import ImageContent, read_ahead, try_to_read
from trainer.data.decode import decode_content
from trainer.data.index import ImageIndex
from trainer.data.processes import whole_item_loader
from trainer.data.sampler import EpochPlan, Indices, epoch_order, eval_indices
from trainer.model.weight_files import NORMALIZATIONS
from trainer.shared.config import TrainConfig
from trainer.shared.errors import TrainerError
from trainer.shared.program import TRAINER


class ImageBatch(NamedTuple):
    """One device's images of one step.

    Attributes:
        images: uint8 (N, 3, S, S), in the memory format of the network.
        labels: int64 (N,).
        indices: int64 (N,), positions in the split's index of the images that are shown.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor


def train_batches(
    index: ImageIndex,
    *,
    config: TrainConfig,
    epoch: int,
    plan: EpochPlan,
    rank: int,
    pin_memory: bool,
    bad_images: BadImages | None = None,
) -> Iterator[ImageBatch]:
    """Yield one rank's training batches of the epoch's `plan`.

    Under `--on-bad-image skip` the next readable image of the index replaces a bad one, with its own label and the bad
    one's random draws: this depends only on the data. `bad_images` collects each.

    Raises:
        BadImageError: an image cannot be decoded, under `--on-bad-image fail`.
        TrainerError: a loader process died, or more images in a row are bad than `--max-bad-images` allows.
    """
    order = epoch_order(len(index), seed=config.seed, epoch=epoch)
    batches = [
        order[positions.start : positions.stop] for step in range(plan.steps) for positions in plan.batches(step, rank)
    ]
    make = partial(_train_item, index, config, epoch, TrainTransform(config))
    return _load(make, batches, config, pin_memory=pin_memory, bad_images=bad_images or BadImages())


def eval_batches(
    index: ImageIndex,
    *,
    config: TrainConfig,
    rank: int,
    world_size: int,
    pin_memory: bool,
    bad_images: BadImages | None = None,
) -> Iterator[ImageBatch]:
    """Yield one rank's share of a split, unaugmented; over all ranks each image exactly once.

    Ranks may have different numbers of batches.

    Under `--on-bad-image skip` a bad image is missing from its batch, and an empty batch from the sequence: an image in
    its place would count twice. `bad_images.take_left_out()` is their number, to be counted as answered wrongly.

    Raises:
        BadImageError: an image cannot be decoded, under `--on-bad-image fail`.
        TrainerError: a loader process died.
    """
    batches = list(eval_indices(len(index), rank=rank, world_size=world_size, batch_size=config.batch_size))
    make = partial(_eval_item, index, config, EvalTransform(config))
    return _load(make, batches, config, pin_memory=pin_memory, bad_images=bad_images or BadImages())


def to_device(batches: Iterator[ImageBatch], device: torch.device) -> Iterator[ImageBatch]:
    """Move batches to `device` on a separate stream, each while the device still computes the step before it.

    A training step only queues work, so the host asks for the next batch while that work is still to be done. Copies
    overlap only if the batches are pinned.
    """
    if device.type == "cpu":
        yield from batches
        return
    backend = torch.get_device_module(device)
    copies = backend.Stream(device)
    for batch in batches:
        with backend.stream(copies):
            moved = ImageBatch(*(tensor.to(device, non_blocking=True) for tensor in batch))
        computing = backend.current_stream(device)
        computing.wait_stream(copies)
        for tensor in moved:
            # Without this, its memory could be reused while the computing stream still reads it.
            tensor.record_stream(computing)
        yield moved


def network_input(batch: ImageBatch, config: TrainConfig) -> Tensor:
    """Return the batch's images, float32 (N, 3, S, S), normalised on their device."""
    mean, std = NORMALIZATIONS[config.normalize]
    return device_transform(batch.images, mean=mean, std=std, channels_last=config.memory_format == "nhwc")


class _LoaderItem(NamedTuple):
    """One batch from a loader process, or the reason for its absence, and the bad images among its samples."""

    batch: ImageBatch | None
    bad: tuple[BadImage, ...] = ()
    failure: TrainerError | None = None


def _train_item(
    index: ImageIndex, config: TrainConfig, epoch: int, transform: TrainTransform, samples: Indices
) -> _LoaderItem:
    keys = [sample_key(seed=config.seed, epoch=epoch, sample=sample) for sample in samples.tolist()]
    images = _empty_images(len(samples), config)
    indices = samples.copy()
    bad: list[BadImage] = []
    try:
        # The transforms draw from the default generator, which in the training process is also dropout's.
        with torch.random.fork_rng(devices=[]):
            contents = read_ahead(map(index.place, samples.tolist()))
            for position, (key, content) in enumerate(zip(keys, contents, strict=True)):
                reduction = partial(transform.reduction, key)
                indices[position], pixels, skipped = _readable(
                    index, int(samples[position]), content, config, reduction
                )
                bad += skipped
                images[position] = transform(pixels, key)
    except TrainerError as error:
        return _LoaderItem(None, failure=error)
    return _LoaderItem(_batch(index, images, indices), tuple(bad))


def _eval_item(index: ImageIndex, config: TrainConfig, transform: EvalTransform, samples: Indices) -> _LoaderItem:
    images = _empty_images(len(samples), config)
    indices: list[int] = []
    bad: list[BadImage] = []
    for sample, content in zip(samples.tolist(), read_ahead(map(index.place, samples.tolist())), strict=True):
        try:
            pixels = _pixels(content)
        except BadImageError as error:
            if config.on_bad_image == "fail":
                return _LoaderItem(None, failure=error)
            bad.append(_bad_image(index, sample, error, replaced_by=None))
            continue
        images[len(indices)] = transform(pixels)
        indices.append(sample)
    if not indices:
        return _LoaderItem(None, tuple(bad))
    batch = _batch(index, images[: len(indices)], np.array(indices, dtype=np.int64))
    return _LoaderItem(batch, tuple(bad))


def _readable(
    index: ImageIndex,
    sample: int,
    content: ImageContent | BadImageError,
    config: TrainConfig,
    reduction: Callable[[int, int], int],
) -> tuple[int, Tensor, list[BadImage]]:
    """Return `sample`, or the next one in the index that can be decoded, its pixels, and the bad ones before it.

    `content` belongs to `sample`.

    Raises:
        BadImageError: `sample` cannot be decoded and must not be skipped.
        TrainerError: too many in a row are bad; a longer search could read the whole split.
    """
    errors: list[tuple[int, BadImageError]] = []
    candidate = sample
    while True:
        try:
            pixels = _pixels(content, reduction)
        except BadImageError as error:
            if config.on_bad_image == "fail":
                raise
            errors.append((candidate, error))
        else:
            return candidate, pixels, [_bad_image(index, bad, error, replaced_by=candidate) for bad, error in errors]
        allowed, first, last = allowed_bad_images(len(index), config.max_bad_images), errors[0][1], errors[-1][1]
        if len(errors) > allowed:
            raise TrainerError(
                f"{index.root}: {len(errors):,} images in a row cannot be decoded, from {first.path} ({first.reason})"
                f" to {last.path}; --max-bad-images {config.max_bad_images:g} of {len(index):,} allows {allowed:,}:"
                f" check the disk, or replace them (`{TRAINER} data verify FOLDER` lists every such file)"
            )
        candidate = (candidate + 1) % len(index)
        content = try_to_read(index.place(candidate))


def _pixels(content: ImageContent | BadImageError, reduction: Callable[[int, int], int] | None = None) -> Tensor:
    """Return the pixels of an image that was read, as `decode_content` does.

    Raises:
        BadImageError: it was not, or cannot be decoded.
    """
    if isinstance(content, BadImageError):
        raise content
    return decode_content(content, reduction)


def _bad_image(index: ImageIndex, sample: int, error: BadImageError, *, replaced_by: int | None) -> BadImage:
    return BadImage(error.path, error.reason, index.root.name, sample, replaced_by)


def _empty_images(count: int, config: TrainConfig) -> Tensor:
    # In the network's layout the device need not change it, and images come in NHWC from their decoder and resize.
    memory_format = torch.channels_last if config.memory_format == "nhwc" else torch.contiguous_format
    size = (count, 3, config.image_size, config.image_size)
    return torch.empty(size, dtype=torch.uint8, memory_format=memory_format)


def _batch(index: ImageIndex, images: Tensor, indices: Indices) -> ImageBatch:
    return ImageBatch(images, torch.from_numpy(index.labels[indices]), torch.from_numpy(indices))


def _load(
    make: Callable[[Indices], _LoaderItem],
    batches: Sequence[Indices],
    config: TrainConfig,
    *,
    pin_memory: bool,
    bad_images: BadImages,
) -> Iterator[ImageBatch]:
    items = whole_item_loader(make, batches, workers=config.workers or 0, pin_memory=pin_memory)
    with contextlib.closing(items):
        for item in items:
            bad_images.add(item.bad)
            if item.failure is not None:
                raise item.failure
            if item.batch is not None:
                yield item.batch
