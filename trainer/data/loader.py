"""Batches of decoded, augmented images: the same bits for any number of loader processes, devices and resumptions.

A loader process makes a whole batch at a time, so that nothing but finished uint8 batches crosses process borders. A
bad image comes back as a value and is raised in the training process, where its one line is the last one shown.
"""

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from trainer.config import TrainConfig
from trainer.data.augment import EvalTransform, SampleKey, TrainTransform, sample_key
from trainer.data.decode import BadImageError, decode
from trainer.data.index import ImageIndex
from trainer.data.sampler import Indices, epoch_order, eval_indices, rank_indices
from trainer.errors import TrainerError

PREFETCH = 4


class Batch(NamedTuple):
    """One device's images of one step.

    Attributes:
        images: uint8 (N, 3, S, S).
        labels: int64 (N,).
        flips: bool (N,), which images `device_transform` is to mirror.
        indices: int64 (N,), positions in the split's index.
    """

    images: Tensor
    labels: Tensor
    flips: Tensor
    indices: Tensor


def train_batches(
    index: ImageIndex,
    *,
    config: TrainConfig,
    epoch: int,
    start_step: int,
    rank: int,
    world_size: int,
    workers: int,
    pin_memory: bool,
    steps: int | None = None,
) -> Iterator[Batch]:
    """One rank's training batches of one epoch, from `start_step` on; `steps` limits the epoch as `--steps` does.

    Raises:
        UsageError: one global batch is more than all the images.
        BadImageError: an image cannot be decoded.
        TrainerError: a loader process died.
    """
    order = epoch_order(len(index), seed=config.seed, epoch=epoch)
    batches = list(
        rank_indices(order, rank=rank, world_size=world_size, batch_size=config.batch_size, start_step=start_step)
    )
    if steps is not None:
        batches = batches[: max(steps - start_step, 0)]
    return _load(_TrainBatches(index, config, epoch), batches, workers=workers, pin_memory=pin_memory)


def eval_batches(
    index: ImageIndex, *, config: TrainConfig, rank: int, world_size: int, workers: int, pin_memory: bool
) -> Iterator[Batch]:
    """One rank's share of a split, unaugmented; over all ranks each image exactly once. Ranks may differ in batches.

    Raises:
        BadImageError: an image cannot be decoded.
        TrainerError: a loader process died.
    """
    batches = list(eval_indices(len(index), rank=rank, world_size=world_size, batch_size=config.batch_size))
    return _load(_EvalBatches(index, config), batches, workers=workers, pin_memory=pin_memory)


def to_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Move batches to `device` on a stream of their own, each while the device still computes the step before it.

    A training step only queues work, so the host comes back for the next batch with that work ahead of it. Copies
    overlap only if the batches are pinned.
    """
    if device.type == "cpu":
        yield from batches
        return
    backend = torch.get_device_module(device)
    copies = backend.Stream(device)
    for batch in batches:
        with backend.stream(copies):
            moved = Batch(*(tensor.to(device, non_blocking=True) for tensor in batch))
        computing = backend.current_stream(device)
        computing.wait_stream(copies)
        for tensor in moved:
            # Else its memory could be handed out again while the computing stream still reads it.
            tensor.record_stream(computing)
        yield moved


@contextlib.contextmanager
def loader_deaths_explained() -> Iterator[None]:
    """Turn torch's report of a dead loader process into one line.

    torch raises it from a signal handler, wherever the training process happens to be, so wrap the whole epoch.

    Raises:
        TrainerError: a loader process died.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise TrainerError(
            f"a loader process died ({' '.join(str(error).split())}): out of memory or of /dev/shm;"
            " lower --workers or --batch-size, or give the container more of them"
        ) from None


class _TrainBatches(Dataset[Batch | BadImageError]):
    def __init__(self, index: ImageIndex, config: TrainConfig, epoch: int) -> None:
        self._index, self._config, self._epoch = index, config, epoch
        self._transform = TrainTransform(config)

    def __getitem__(self, samples: Indices) -> Batch | BadImageError:
        keys = [sample_key(seed=self._config.seed, epoch=self._epoch, sample=sample) for sample in samples.tolist()]
        flips = torch.tensor([key.uniform < self._config.flip for key in keys])
        # The transforms draw from the default generator, which in the training process is also dropout's.
        state = torch.default_generator.get_state()
        try:
            return _batch(self._index, samples, flips, self._config.image_size, self._keyed(keys))
        finally:
            torch.default_generator.set_state(state)

    def _keyed(self, keys: Sequence[SampleKey]) -> Callable[[int, Tensor], Tensor]:
        def transform(position: int, image: Tensor) -> Tensor:
            torch.default_generator.manual_seed(keys[position].seed)
            return self._transform(image)

        return transform


class _EvalBatches(Dataset[Batch | BadImageError]):
    def __init__(self, index: ImageIndex, config: TrainConfig) -> None:
        self._index, self._config = index, config
        self._transform = EvalTransform(config)

    def __getitem__(self, samples: Indices) -> Batch | BadImageError:
        flips = torch.zeros(len(samples), dtype=torch.bool)
        size = self._config.image_size
        return _batch(self._index, samples, flips, size, lambda _position, image: self._transform(image))


def _batch(
    index: ImageIndex, samples: Indices, flips: Tensor, size: int, transform: Callable[[int, Tensor], Tensor]
) -> Batch | BadImageError:
    images = torch.empty((len(samples), 3, size, size), dtype=torch.uint8)
    for position, sample in enumerate(samples.tolist()):
        try:
            pixels = decode(index.path(sample))
        except BadImageError as error:
            return error
        images[position] = transform(position, pixels)
    return Batch(images, torch.from_numpy(index.labels[samples]), flips, torch.from_numpy(samples.copy()))


def _load(
    dataset: Dataset[Batch | BadImageError], batches: Sequence[Indices], *, workers: int, pin_memory: bool
) -> Iterator[Batch]:
    workers = min(workers, len(batches))
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=batches,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=PREFETCH if workers else None,
        worker_init_fn=_start_worker,
        # Its own, because the loader draws a seed from it; the default generator is the model's.
        generator=torch.Generator(),
    )
    with loader_deaths_explained():
        iterator = iter(loader)
    while True:
        with loader_deaths_explained():
            batch = next(iterator, None)
        if batch is None:
            return
        if isinstance(batch, BadImageError):
            raise batch
        yield batch


def _start_worker(_worker: int) -> None:
    # Ctrl-C reaches the whole process group; the training process answers it and then stops its loaders.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A fork inherits the training process's handler, with which a loader that is told to stop would not.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
