"""Drop-path: one table of random factors per step, for every cell, branch and image.

All factors are drawn at once, from the device's default generator, before the first cell runs. That is one call to the
generator instead of one per branch, and a cell that is recomputed in the backward pass sees the same factors.
"""

import torch
from torch import Tensor


def drop_path_table(rate: float, cells: int, branches: int, images: int, device: torch.device) -> Tensor:
    """Draw the factors of one training step.

    A branch of cell c (from 0) is kept with probability p = 1 - rate * (c + 1) / cells and then divided by p, so that
    its expectation stays (TensorFlow slim, nasnet_utils.py, drop_connect_version v3; the ramp over time is in `rate`).

    Args:
        rate: probability in [0, 1) that a branch of the last cell is dropped in this step.

    Returns:
        (cells, branches, images) float32 on `device`: 0 or 1 / p.
    """
    depth = torch.arange(1, cells + 1, device=device, dtype=torch.float32) / cells
    keep_probability = (1 - rate * depth)[:, None, None]
    return (torch.rand(cells, branches, images, device=device) + keep_probability).floor_().div_(keep_probability)
