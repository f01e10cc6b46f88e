"""PNASNet-5 at three scales: a stem, three stages of cells, a classifier.

One description of a scale (width of the stem, filters, cells per stage) and one genotype define the whole network. Its
parameters have the names of the published weights (Cadene's and timm's), so that these load unchanged.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F  # noqa: N812  # the name that every PyTorch program uses
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.model.aux_head import AuxHead, AuxKind
from trainer.model.cell import DROPPED, SUMS, Cell, Previous
from trainer.model.layers import PADDINGS, BatchNorm2d, Padding, batch_norm
from trainer.shared.config import TrainConfig

STEMS = 2
STAGES = 3


@dataclass(frozen=True)
class Scale:
    """How large a PNASNet-5 is.

    Attributes:
        name: the value of `--model`.
        stem: channels of the first convolution.
        filters: width of the first stage's cells; each further stage doubles it.
        cells: cells per stage.
        aux_side: side of the last map of the second stage for images of the published size: 331, 224, 32 pixels.
    """

    name: str
    stem: int
    filters: int
    cells: int
    aux_side: int

    def channels(self, stage: int) -> int:
        """Return the channels of the output of a stage's cells; stages count from 0."""
        return len(SUMS) * (self.filters << stage)


# TensorFlow slim, pnasnet.py: large_imagenet_config and mobile_imagenet_config; the last is for tests.
LARGE = Scale("pnasnet5large", stem=96, filters=216, cells=4, aux_side=21)
MOBILE = Scale("pnasnet5mobile", stem=32, filters=54, cells=3, aux_side=14)
TINY = Scale("pnasnet5tiny", stem=32, filters=16, cells=1, aux_side=5)
SCALES = {scale.name: scale for scale in (LARGE, MOBILE, TINY)}


class PNASNet5(nn.Module):
    """PNASNet-5 for images of any size: (N, 3, H, W), normalised -> (N, num_classes) logits.

    In training with an auxiliary head it returns (logits, auxiliary logits), both (N, num_classes).

    Args:
        scale: its size.
        num_classes: outputs of the classifier.
        aux: place of the auxiliary head, or None for none.
        padding: "exact" is TensorFlow's SAME at every height and width; "seed" is the function of the Ascend
            ModelZoo's PnasNet5Large, which dropped pads. Weights of one give a wrong result with the other.
        drop_path: probability in [0, 1) of dropping a branch of the last cell at the end of training.
        dropout: probability in [0, 1) before the classifier.
        checkpoint_cells: keep only the cells' outputs for the backward pass, which recomputes the rest. The cells of
            the last stage keep all: they have a third of the arithmetic, and an eighth of the maps.
    """

    def __init__(
        self,
        scale: Scale,
        num_classes: int = 1000,
        aux: AuxKind | None = None,
        padding: Padding = "exact",
        drop_path: float = 0.0,
        *,
        dropout: float = 0.5,
        checkpoint_cells: bool = False,
    ) -> None:
        super().__init__()
        if padding not in PADDINGS:
            raise ValueError(f"padding is {padding!r}; it must be one of {', '.join(PADDINGS)}")
        self.scale, self.num_classes, self.padding = scale, num_classes, padding
        self.drop_path = drop_path
        self.recomputed_cells = STEMS + (STAGES - 1) * scale.cells if checkpoint_cells else 0
        self.progress = 1.0
        self._rate = torch.tensor(drop_path)
        """Drop-path's present rate, an fp32 scalar on the device, which a captured or compiled step reads each time."""

        conv = nn.Conv2d(3, scale.stem, 3, stride=2, bias=False)
        self.conv_0 = nn.Sequential(OrderedDict[str, nn.Module](conv=conv, bn=batch_norm(scale.stem)))
        self.cell_names = []
        for name, cell in _cells(scale, padding):
            self.cell_names.append(name)
            self.add_module(name, cell)
        self.dropout = nn.Dropout(dropout)
        self.last_linear = nn.Linear(scale.channels(STAGES - 1), num_classes)
        self.aux, self.aux_after = _aux_head(scale, aux, num_classes)
        self._batches_seen = _join_counters(self)

    def set_progress(self, fraction: float) -> None:
        """Set the completed share of the training, from 0 to 1: drop-path's rate grows with it (1 by default)."""
        if not 0 <= fraction <= 1:
            raise ValueError(f"progress is {fraction}; it must be from 0 to 1")
        self.progress = fraction
        self._rate.fill_(self.drop_path * fraction)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return the logits; in training with an auxiliary head also its logits."""
        if self.training:
            self._batches_seen.add_(1)
        keep = self.drop_path_factors(x)
        aux_logits: Tensor | None = None
        stem: Tensor = self.conv_0(x)
        left = right = later = F.relu(stem)
        raw: Tensor | None = stem
        for index, name in enumerate(self.cell_names):
            cell = self.get_submodule(name)
            run = _recomputing if index < self.recomputed_cells and torch.is_grad_enabled() else _plain
            output, output_again = run(cell, left, right, None if keep is None else keep[index], raw)
            left, right, later = later, output, output_again
            raw = None
            if self.training and self.aux is not None and name == self.aux_after:
                aux_logits = self.aux(right)
        features = F.adaptive_avg_pool2d(right, 1).flatten(1)
        logits: Tensor = self.last_linear(self.dropout(features))
        return logits if aux_logits is None else (logits, aux_logits)

    def drop_path_factors(self, x: Tensor) -> Tensor | None:
        """Draw this step's table of (cells, branches, N) fp32 factors; without drop-path draw nothing and return None.

        A branch of cell c (from 0) is kept with probability p = 1 - rate * (c + 1) / cells and then divided by p, so
        that its expectation stays (TensorFlow slim, nasnet_utils.py, drop_connect_version v3). A factor is 0 or 1 / p.

        All are drawn at once, from the device's default generator, before the first cell runs. That is one call to the
        generator instead of one per branch, and a cell that is recomputed in the backward pass sees the same factors.
        """
        if not (self.training and self.drop_path):
            return None
        cells = len(self.cell_names)
        depth = torch.arange(1, cells + 1, device=x.device, dtype=torch.float32) / cells
        keep_probability = (1 - self._rate * depth)[:, None, None]
        draws = torch.rand(cells, len(DROPPED), x.shape[0], device=x.device)
        return (draws + keep_probability).floor_().div_(keep_probability)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or convert everything; the counters stay one tensor, and drop-path's rate stays in fp32."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._rate = torch.full((), self.drop_path * self.progress, device=self.last_linear.weight.device)
        self._batches_seen = _join_counters(self)
        return self


def build_model(config: TrainConfig, num_classes: int) -> PNASNet5:
    """Return the network of a run's configuration, with random weights, on the CPU."""
    return PNASNet5(
        SCALES[config.model],
        num_classes,
        None if config.aux == "none" else config.aux,
        config.padding,
        config.drop_path,
        dropout=config.dropout,
        checkpoint_cells=config.activation_checkpointing,
    )


def _cells(scale: Scale, padding: Padding) -> Iterator[tuple[str, Cell]]:
    """Yield the cells and their names, in order. The stem's two, and the first of each later stage, halve the sides."""
    plan = [("cell_stem_0", scale.filters // 4, 2), ("cell_stem_1", scale.filters // 2, 2)]
    for index in range(STAGES * scale.cells):
        stage, place = divmod(index, scale.cells)
        plan.append((f"cell_{index}", scale.filters << stage, 2 if stage and not place else 1))
    left = right = scale.stem
    previous: Previous = "as it is"
    for name, width, stride in plan:
        yield name, Cell(left, right, width, stride=stride, padding=padding, previous=previous)
        left, right = right, len(SUMS) * width
        previous = "reduced" if stride == 2 else "projected"


def _aux_head(scale: Scale, kind: AuxKind | None, num_classes: int) -> tuple[AuxHead | None, str]:
    """Return the head, and the name of the cell that it follows."""
    if kind is None:
        return None, ""
    if kind == "tf":  # slim nasnet.py, _build_aux_head: behind the last cell of the second stage
        head = AuxHead(scale.channels(1), num_classes, side=scale.aux_side, pool=5, stride=3)
        return head, f"cell_{2 * scale.cells - 1}"
    head = AuxHead(scale.channels(2), num_classes, side=11, pool=7, stride=2)
    return head, f"cell_{2 * scale.cells}"


def _join_counters(network: nn.Module) -> Tensor:
    """Make the batch counters of all norms views of one tensor (norms,) int64, and return it."""
    norms = [module for module in network.modules() if isinstance(module, BatchNorm2d)]
    if not norms:  # a folded network
        return torch.zeros(0, dtype=torch.int64)
    counters = torch.stack([norm.get_buffer("num_batches_tracked") for norm in norms])
    for norm, counter in zip(norms, counters.unbind(), strict=True):
        norm.register_buffer("num_batches_tracked", counter)
    return counters


def _plain(cell: nn.Module, *inputs: Tensor | None) -> tuple[Tensor, Tensor]:
    outputs: tuple[Tensor, Tensor] = cell(*inputs)
    return outputs


def _recomputing(cell: nn.Module, *inputs: Tensor | None) -> tuple[Tensor, Tensor]:
    outputs: tuple[Tensor, Tensor] = checkpoint(
        cell,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,  # nothing in a cell draws random numbers
        context_fn=lambda: (nullcontext(), _running_statistics_held(cell)),
    )
    return outputs


@contextmanager
def _running_statistics_held(cell: nn.Module) -> Iterator[None]:
    """Let batch norms normalise by the batch without counting it: recomputation must not count it twice."""
    norms = [module for module in cell.modules() if isinstance(module, BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
