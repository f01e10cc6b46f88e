"""How many images fit into memory at once: a large batch makes a CPU run slow instead of getting it killed.

An accelerator reports that it is out of memory; on a CPU the kernel kills the process silently. A batch that does not
fit is computed in parts whose gradients add up. The only difference is batch norm's, which sees one part at a time.
"""

from trainer.shared.config import TrainConfig

# Bytes that the backward pass keeps per input pixel in fp32: 697 MB for an image of 331 px in the large network.
SAVED_BYTES_PER_PIXEL = {"pnasnet5large": 6_400, "pnasnet5mobile": 1_430, "pnasnet5tiny": 340}
# A pass needs another half of that for gradients and temporaries of the current layer.
WORKING_SHARE = 1.5
# Weights, gradients, momentum and average of the largest network (1.4 GB), and what torch itself takes.
FIXED_BYTES = 2 * 10**9
# The rest of the machine's memory is left to the system, the loaders and the page cache.
USABLE_SHARE = 0.75


def choose_micro_batch(config: TrainConfig, *, device: str, processes: int, memory_bytes: int) -> int:
    """Return the images per forward pass: the whole batch, or on a CPU the number that fits.

    Args:
        device: `npu`, `cuda` or `cpu`.
        processes: how many processes share the machine's memory.
        memory_bytes: the whole memory.
    """
    if config.micro_batch is not None:
        return min(config.micro_batch, config.batch_size)
    if device != "cpu":
        return config.batch_size
    per_image = SAVED_BYTES_PER_PIXEL[config.model] * config.image_size**2 * WORKING_SHARE
    if config.activation_checkpointing:
        # Little is kept between cells, but the largest cell holds about half of the total.
        per_image /= 2
    budget = memory_bytes * USABLE_SHARE / processes - FIXED_BYTES
    return max(1, min(config.batch_size, int(budget / per_image)))
