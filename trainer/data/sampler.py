"""Which images each device sees at each step: pure functions of (seed, epoch, step, rank, world size).

Nothing here has state, so resuming at (epoch, step) is a matter of naming it, with any number of devices that keeps the
global batch, and evaluation covers every image exactly once by construction.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from trainer.errors import UsageError

Indices = NDArray[np.int64]


def epoch_order(n: int, *, seed: int, epoch: int) -> Indices:
    """The order of `n` images in one epoch: a permutation of range(n), the same on every rank and machine.

    It sorts Philox's raw stream, which numpy promises never to change (its `permutation` may change).
    """
    digest = hashlib.blake2b(f"order {seed} {epoch}".encode(), digest_size=16).digest()
    stream = np.random.Philox(key=int.from_bytes(digest, "little")).random_raw(n)
    return np.argsort(stream, kind="stable").astype(np.int64, copy=False)


def batches_per_epoch(n: int, *, world_size: int, batch_size: int) -> int:
    """Full global batches in `n` images; the ragged rest sits out this epoch and falls elsewhere in the next.

    Raises:
        UsageError: one global batch is more than all the images.
    """
    global_batch_size = world_size * batch_size
    if global_batch_size > n:
        hint = f"use --batch-size {n // world_size} or less" if n >= world_size else f"use at most {n} devices"
        raise UsageError(
            f"--batch-size {batch_size} on {world_size} devices makes {global_batch_size:,} images per step,"
            f" more than the {n:,} training images; {hint}"
        )
    return n // global_batch_size


def rank_indices(
    order: Indices, *, rank: int, world_size: int, batch_size: int, start_step: int = 0
) -> Iterator[Indices]:
    """The batches (batch_size,) of one rank from `start_step` to the end of the epoch.

    Raises:
        UsageError: one global batch is more than all the images.
    """
    steps = batches_per_epoch(len(order), world_size=world_size, batch_size=batch_size)
    for step in range(start_step, steps):
        first = (step * world_size + rank) * batch_size
        yield order[first : first + batch_size]


def eval_indices(n: int, *, rank: int, world_size: int, batch_size: int) -> Iterator[Indices]:
    """The batches of one rank's share of range(n): over all ranks each image once, none twice, none padded.

    Shares are contiguous and differ by at most one image; a rank may get none, and the last batch may be smaller.
    """
    first, end = n * rank // world_size, n * (rank + 1) // world_size
    for start in range(first, end, batch_size):
        yield np.arange(start, min(start + batch_size, end), dtype=np.int64)
