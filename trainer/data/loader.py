"""Batches of decoded, augmented images: the same bits for any number of loader processes, devices and resumptions.

A loader process makes a whole batch at a time, so that nothing but finished uint8 batches crosses process borders. A
bad image comes back as a value and is raised in the training process, where its one line is the last one shown.
"""

import contextlib
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

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

Item = TypeVar("Item")


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


def start_worker(_worker: int) -> None:
    """Set up a loader process: one thread, and signals that leave the last word to the training process."""
    # Ctrl-C reaches the whole process group; the training process answers it and then stops its loaders.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A fork inherits the training process's handler, with which a loader that is told to stop would not.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)


def whole_item_loader(
    dataset: Dataset[Item],
    keys: Sequence[Any],
    *,
    workers: int,
    pin_memory: bool = False,
    start_worker: Callable[[int], None] = start_worker,
) -> Generator[Item]:
    """`dataset[key]` for each key, in order, made by `workers` processes (0: this one) a few items ahead.

    Raises:
        TrainerError: a loader process died.
    """
    workers = min(workers, len(keys))
    with warnings.catch_warnings():
        # More processes than CPUs is the user's choice, and right where the disk is what they wait for.
        warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
        loader = DataLoader(
            dataset,
            batch_size=None,
            sampler=keys,
            num_workers=workers,
            pin_memory=pin_memory,
            prefetch_factor=PREFETCH if workers else None,
            worker_init_fn=start_worker,
            # Its own, because the loader draws a seed from it; the default generator is the model's.
            generator=torch.Generator(),
        )
        on_child_death = signal.getsignal(signal.SIGCHLD)
        # A Ctrl-C between a loader's birth and `start_worker` would print a traceback, so it waits.
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        items = iter(loader)
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
    if threading.current_thread() is threading.main_thread():
        # torch's handler would raise a loader's death wherever this process happens to be, more than once and with
        # tracebacks. Without it `next` finds out, within five seconds.
        signal.signal(signal.SIGCHLD, on_child_death or signal.SIG_DFL)
    try:
        yield from _items_or_death(items)
    finally:
        # A traceback keeps this frame; the loader processes are to end with the iteration all the same.
        del items


def _items_or_death(items: Iterator[Item]) -> Iterator[Item]:
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        # The last three: a loader that dies has promised tensors which can no longer be fetched from it.
        except (RuntimeError, EOFError, ConnectionError, FileNotFoundError) as error:
            if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            break
        yield item
    # Outside the handler, or the error's context would keep torch's iterator, and so the other loaders, alive.
    del items
    raise TrainerError(
        "a loader process died, as it does when memory or /dev/shm runs out;"
        f" lower --workers or --batch-size, or give the container more of them ({reason})"
    )


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
    with contextlib.closing(whole_item_loader(dataset, batches, workers=workers, pin_memory=pin_memory)) as made:
        for batch in made:
            if isinstance(batch, BadImageError):
                raise batch
            yield batch
