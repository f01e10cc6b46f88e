"""PNASNet-5's cell, built from its genotype: five sums of two branches each, concatenated.

A cell reads the outputs of the two layers before it. Each distinct ReLU and each distinct max-pool of a tensor is
computed once: most branches of a cell start with the same ReLU of the same map, and two with the same pool. Every
consumer of a cell's output rectifies it first, so a cell returns its output already rectified.
"""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F  # noqa: N812  # the name that every PyTorch program uses
from torch import Tensor, nn

from trainer.model.join import JoinedSums
from trainer.model.layers import FactorizedReduction, MaxPool2d, Padding, Projection, Separable

BranchSource = Literal["left", "right", "sum_2"]
Form = Literal["raw", "rectified", "pooled"]
Previous = Literal["projected", "reduced", "as it is"]
Operation = Literal["separable", "max_pool", "identity"]


@dataclass(frozen=True)
class Branch:
    """One operation of the genotype, its input, and its name in published weights."""

    name: str
    source: BranchSource
    operation: Operation
    kernel: int = 1


# The cell found by the search: Liu et al., Progressive Neural Architecture Search, arXiv:1712.00559, figure 1.
# Neighbours are added. "left" is the layer before last, "right" the last one, "sum_2" the third sum of this cell.
GENOTYPE = (
    Branch("comb_iter_0_left", "left", "separable", 5),
    Branch("comb_iter_0_right", "left", "max_pool"),
    Branch("comb_iter_1_left", "right", "separable", 7),
    Branch("comb_iter_1_right", "right", "max_pool"),
    Branch("comb_iter_2_left", "right", "separable", 5),
    Branch("comb_iter_2_right", "right", "separable", 3),
    Branch("comb_iter_3_left", "sum_2", "separable", 3),
    Branch("comb_iter_3_right", "right", "max_pool"),
    Branch("comb_iter_4_left", "left", "separable", 3),
    Branch("comb_iter_4_right", "right", "identity"),
)
SUMS = tuple(zip(GENOTYPE[::2], GENOTYPE[1::2], strict=True))

# TensorFlow's drop-path never drops the identity, even as a projection in a reduction cell (slim nasnet_utils.py).
DROPPED = tuple(branch.name for branch in GENOTYPE if branch.operation != "identity")


class Cell(nn.Module):
    """Two rectified maps in, one rectified map of 5 * width channels out; stride 2 halves its sides.

    Args:
        left: channels of the layer before last.
        right: channels of the last layer.
        width: channels of each of the five sums.
        stride: 1, or 2 for a reduction cell.
        padding: which function of the borders to compute.
        previous: how the layer before last gets the last one's shape: by a 1x1 projection, by a factorized reduction if
            its sides are twice as long, or not at all (the first cell, which has one layer before it).
    """

    def __init__(
        self,
        left: int,
        right: int,
        width: int,
        *,
        stride: int,
        padding: Padding,
        previous: Previous = "projected",
    ) -> None:
        super().__init__()
        self.conv_prev_1x1: nn.Module | None = None
        if previous == "projected":
            self.conv_prev_1x1 = Projection(left, width)
        elif previous == "reduced":
            self.conv_prev_1x1 = FactorizedReduction(left, width, padding)
        self.conv_1x1 = Projection(right, width)
        self.max_pool = MaxPool2d(stride, padding)
        self.reads: dict[str, tuple[BranchSource, Form]] = {}
        for branch in GENOTYPE:
            channels = left if branch.source == "left" and previous == "as it is" else width
            step = 1 if branch.source == "sum_2" else stride
            form, module = _build(branch, channels, width, step, padding)
            self.reads[branch.name] = branch.source, form
            self.add_module(branch.name, module)

    def forward(
        self, left: Tensor, right: Tensor, keep: Tensor | None = None, raw_left: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute the cell's rectified output, twice: for the next layer, and for the one after it.

        Args:
            left: (N, left, H', W'), rectified output of the layer before last.
            right: (N, right, H, W), rectified output of the last layer.
            keep: (len(DROPPED), N) drop-path factors of the branches in DROPPED, or None to keep all.
            raw_left: `left` before its ReLU; only for a cell that uses `left` as it is.

        Returns:
            (N, 5 * width, ceil(H / stride), ceil(W / stride)) and the same
        """
        if self.conv_prev_1x1 is not None:
            raw_left = self.conv_prev_1x1(left)
            left = F.relu(raw_left)
        raw_right = self.conv_1x1(right)
        maps: dict[tuple[BranchSource, Form], Tensor] = {
            ("left", "rectified"): left,
            ("left", "pooled"): self.max_pool(raw_left),
            ("right", "raw"): raw_right,
            ("right", "rectified"): F.relu(raw_right),
            ("right", "pooled"): self.max_pool(raw_right),
        }
        factors: dict[str, Tensor] = {}
        if keep is not None:
            rows = keep.to(raw_right.dtype)[:, :, None, None, None].unbind()
            factors = dict(zip(DROPPED, rows, strict=True))
        sums = JoinedSums(len(SUMS))
        for number, (first, second) in enumerate(SUMS):
            x, y = (self.get_submodule(branch.name)(maps[self.reads[branch.name]]) for branch in (first, second))
            total = sums.add(x, y, factors.get(first.name), factors.get(second.name))
            if number == 2:
                maps["sum_2", "rectified"] = F.relu(total)
        # Every consumer reads a cell's output through a ReLU.
        return sums.rectify()


def _build(branch: Branch, channels: int, width: int, stride: int, padding: Padding) -> tuple[Form, nn.Module]:
    """Return a branch's module, and the form of its source that the module reads."""
    if branch.operation == "separable":
        return "rectified", Separable(channels, width, branch.kernel, stride, padding)
    if branch.operation == "max_pool":  # the cell computes the pool itself, once per source
        return "pooled", nn.Identity() if channels == width else Projection(channels, width)
    return ("raw", nn.Identity()) if stride == 1 else ("rectified", Projection(channels, width, stride))
