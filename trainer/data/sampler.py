"""Which images each device sees at each step: pure functions of (seed, epoch, step, rank, world size).

Nothing here has state. To resume, give the step. If the number of devices has changed, give how many images of the
epoch are used. Evaluation covers every image exactly once by construction.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.shared.errors import UsageError

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class EpochPlan:
    """Which positions of `epoch_order` each step of an epoch, or of the rest of one, uses; steps count from 0.

    If the images make whole global batches, step s takes batch s. Otherwise they are spread over the fewest possible
    steps, as evenly as possible, so that no step's gradient depends on a few images.

    Attributes:
        done: images of the epoch that earlier steps have used; the plan begins there.
        end: the plan's end; images from here on are not used in this epoch.
        steps: optimizer steps.
        left_out: images of the epoch's first plan that this plan cannot use: too few for a step.
    """

    done: int
    end: int
    steps: int
    left_out: int
    world_size: int
    batch_size: int

    def images(self, step: int) -> int:
        """Return how many images the whole job uses in one step."""
        return len(self.positions(step))

    def positions(self, step: int) -> range:
        """Return the part of the epoch's order that one step uses."""
        return _share(range(self.done, self.end), step, self.steps)

    def batches(self, step: int, rank: int) -> list[range]:
        """Return one rank's part of a step: from one to `accumulate` batches, each with 1 to `batch_size` images.

        Ranks differ by at most one image. In a full step the first batches of all ranks come first, in the order of the
        ranks, then their second batches.
        """
        positions = self.positions(step)
        count = -(-len(positions) // (self.world_size * self.batch_size))
        parts = (_share(positions, turn * self.world_size + rank, count * self.world_size) for turn in range(count))
        return [part for part in parts if part]


def epoch_order(n: int, *, seed: int, epoch: int) -> Indices:
    """Return the order of `n` images in one epoch: a permutation of range(n), the same on every rank and machine.

    It sorts Philox's raw stream, which numpy promises never to change (its `permutation` may change).
    """
    digest = hashlib.blake2b(f"order {seed} {epoch}".encode(), digest_size=16).digest()
    stream = np.random.Philox(key=int.from_bytes(digest, "little")).random_raw(n)
    return np.argsort(stream, kind="stable").astype(np.int64, copy=False)


def steps_per_epoch(n: int, *, world_size: int, batch_size: int, accumulate: int) -> int:
    """Return the full optimizer steps in `n` images. The rest is not used in this epoch; the next one reorders all.

    Raises:
        UsageError: one step takes more images than there are.
    """
    global_batch_size = world_size * batch_size
    if global_batch_size > n:
        hint = f"use --batch-size {n // world_size} or less" if n >= world_size else f"use at most {n} devices"
        raise UsageError(
            f"--batch-size {batch_size} on {world_size} devices makes {global_batch_size:,} images per step,"
            f" more than the {n:,} training images; {hint}"
        )
    batches = n // global_batch_size
    if accumulate > batches:
        raise UsageError(
            f"--accumulate {accumulate}: a step needs {global_batch_size * accumulate:,} images, more than the {n:,}"
            f" training images; use --accumulate {batches} or less"
        )
    return batches // accumulate


def plan_epoch(
    n: int,
    *,
    world_size: int,
    batch_size: int,
    accumulate: int,
    steps_limit: int | None,
    done_images: int = 0,
    planned: int | None = None,
) -> EpochPlan:
    """Plan an epoch of `n` images, or its rest after `done_images` of them, for this number of devices and batch size.

    A whole epoch has only full steps. The rest of an epoch uses each remaining image of its first plan once, for any
    earlier number of devices and batch size. It leaves images out in two cases: fewer remain than devices; or a step
    takes one image per device, and the last step is not full. If the rest is interrupted too, the next plan has the
    same remaining steps.

    Args:
        steps_limit: most steps of a whole epoch; None is no limit.
        done_images: positions of `epoch_order` that are used up.
        planned: images of the epoch's first plan; None if this is the first plan.

    Raises:
        UsageError: one step takes more images than there are.
    """
    per_step = world_size * batch_size * accumulate
    steps = steps_per_epoch(n, world_size=world_size, batch_size=batch_size, accumulate=accumulate)
    if planned is None:
        planned = per_step * min(steps, steps if steps_limit is None else steps_limit)
    # The user may have removed images since then.
    planned = min(planned, n)
    rest = max(planned - done_images, 0)
    left_out = rest % world_size if per_step == world_size else rest if rest < world_size else 0
    used = rest - left_out
    return EpochPlan(
        done=done_images,
        end=done_images + used,
        steps=-(-used // per_step),
        left_out=left_out,
        world_size=world_size,
        batch_size=batch_size,
    )


def eval_indices(n: int, *, rank: int, world_size: int, batch_size: int) -> Iterator[Indices]:
    """Yield the batches of one rank's share of range(n): over all ranks each image exactly once, without padding.

    Shares are contiguous and differ by at most one image. A share may be empty, and the last batch smaller.
    """
    first, end = n * rank // world_size, n * (rank + 1) // world_size
    for start in range(first, end, batch_size):
        yield np.arange(start, min(start + batch_size, end), dtype=np.int64)


def _share(whole: range, number: int, parts: int) -> range:
    """Return part `number` of `parts` contiguous parts; if they cannot be equal, the first ones have one more."""
    size, larger = divmod(len(whole), parts)
    first = number * size + min(number, larger)
    return whole[first : first + size + (number < larger)]
