"""How large a part of a batch fits into memory at once, so that a CPU run is slow where it would otherwise be killed.

An accelerator says itself that it is out of memory; on a CPU the kernel kills the process without a word. A batch
that does not fit is computed in parts whose gradients add up; only batch norm, which sees one part at a time, can tell.
"""

import os
from pathlib import Path

from trainer.shared.config import TrainConfig

# Bytes that the backward pass keeps per input pixel in fp32: 697 MB for an image of 331 px in the large network.
SAVED_BYTES_PER_PIXEL = {"pnasnet5large": 6_400, "pnasnet5mobile": 1_430, "pnasnet5tiny": 340}
# A pass needs half as much again for gradients and temporaries of the layer at hand.
WORKING_SHARE = 1.5
# Weights, gradients, momentum and average of the largest network (1.4 GB), and what torch itself takes.
FIXED_BYTES = 2 * 10**9
# The rest of the machine's memory is left to the system, the loaders and the page cache.
USABLE_SHARE = 0.75

LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def micro_batch(config: TrainConfig, *, device: str, processes: int, memory_bytes: int) -> int:
    """Images per forward pass: the whole batch, or on a CPU as many as fit.

    Args:
        device: `npu`, `cuda` or `cpu`.
        processes: how many share the machine's memory.
        memory_bytes: all of it.
    """
    if config.micro_batch is not None:
        return min(config.micro_batch, config.batch_size)
    if device != "cpu":
        return config.batch_size
    per_image = SAVED_BYTES_PER_PIXEL[config.model] * config.image_size**2 * WORKING_SHARE
    if config.activation_checkpointing:
        # Between cells next to nothing is kept, but the largest cell holds about half of all.
        per_image /= 2
    budget = memory_bytes * USABLE_SHARE / processes - FIXED_BYTES
    return max(1, min(config.batch_size, int(budget / per_image)))


def machine_memory() -> int:
    """Memory of this machine, or of this container if it is limited to less, in bytes."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [int(text) for path in LIMITS if path.exists() and (text := path.read_text().strip()).isdigit()]
    return min([total, *limits])
