"""The cost of a training step of pnasnet5large, counted: launches, bytes, multiply-adds. No time is measured.

The passes run on torch's meta device, which computes nothing, so that the counts are the same on every machine. The
tests hold them (tests/unit/training/test_model_cost.py), and `benchmarks.projection` starts from them.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.projection import FLOPS, GRADIENTS, MOVED, MOVED_ONCE, PARAMETERS
from benchmarks.report import Bar, Benchmark, Figure, Series, run
from trainer.model.pnasnet import LARGE, PNASNet5

SIDE = 331
LAUNCHES_BAR, SAVED_BAR_MB, RECOMPUTING_BAR_MB = 0.80, 420, 150


class Launches(TorchDispatchMode):
    """Counts operators that compute, and the bytes that they read and write.

    Views and empty tensors start nothing on a device. An operator reads each of its tensors and writes each of its
    results once: caches and repeated reads within a kernel are the device's.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.calls: Counter[str] = Counter()
        self.moved_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, and count it if it computes."""
        result = func(*args, **(kwargs or {}))
        reads = [argument.alias_info for argument in func._schema.arguments]
        is_view = any(alias and not alias.is_write for alias in reads)
        if not is_view and "empty" not in str(func):
            self.calls[str(func).split(".")[1]] += 1
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            self.moved_bytes += sum(tensor.nbytes for tensor in tensors)
        return result


def launches(model: nn.Module, images: int = 2) -> Launches:
    """Count a forward and backward pass in training, of images of 331 pixels in the model's own type."""
    kind = next(model.parameters()).dtype
    counter = Launches()
    with counter:
        model.train()(torch.empty(images, 3, SIDE, SIDE, device="meta", dtype=kind)).sum().backward()
    return counter


def moved_bytes(model: nn.Module) -> tuple[int, int]:
    """Return the bytes that a pass in fp16 moves for each image, and for each step whatever its images."""
    model.half()
    one = launches(model, images=1).moved_bytes
    model.zero_grad(set_to_none=True)  # otherwise the gradients are added up
    two = launches(model, images=2).moved_bytes
    return two - one, 2 * one - two


def saved_bytes(model: nn.Module) -> int:
    """Return the bytes that a forward pass of one image in fp16 keeps for the backward pass."""
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    model = model.half().train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = model(torch.empty(1, 3, SIDE, SIDE, dtype=torch.float16, device="meta"))
    assert result.requires_grad
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in kept}
    of_model = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    return sum(storage.nbytes() for key, storage in storages.items() if key not in of_model)


def multiply_adds(model: nn.Module, side: int = SIDE) -> int:
    """Return the multiply-adds of all convolutions and linear layers for one image, counted during a run."""
    total = 0

    def count(module: nn.Module, _inputs: Any, output: Tensor) -> None:
        nonlocal total
        weight = module.weight
        assert isinstance(weight, Tensor)
        total += output.numel() * weight[0].numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    model.eval()(torch.empty(1, 3, side, side, device="meta"))
    return total


def parameter_count(model: nn.Module) -> int:
    """Return the number of the model's parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def gradient_bytes(model: nn.Module) -> int:
    """Return the bytes of the gradients in O2: batch norm in fp32, all else in fp16."""
    norms = sum(parameter_count(module) for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    return 2 * parameter_count(model) + 2 * norms


def meta_pair(**options: Any) -> tuple[PNASNet5, nn.Module]:
    """Return ours and timm's, without memory."""
    with torch.device("meta"):
        return PNASNet5(LARGE, dropout=0.0, **options), timm.create_model("pnasnet5large")


def measure(quick: bool = False) -> list[Figure]:
    """Return the counts; there is nothing to shorten for a quick run."""
    del quick
    return list(_figures())


def _figures() -> Iterator[Figure]:
    def both(name: str, unit: str, count: Callable[[nn.Module], float], bar: Bar | None = None) -> Figure:
        ours, theirs = map(count, meta_pair())
        return Figure(name, unit, Series("ours", [ours]), Series("timm", [theirs]), bar)

    yield both(
        "launches of a forward and backward pass", "", lambda model: launches(model).calls.total(), Bar(LAUNCHES_BAR)
    )
    saved = "kept for the backward pass in fp16, of an image"
    yield both(saved, "MB", lambda model: saved_bytes(model) / 1e6, Bar(SAVED_BAR_MB, of="ours"))
    recomputing = Series("ours", [saved_bytes(meta_pair(checkpoint_cells=True)[0]) / 1e6])
    yield Figure(f"{saved}, `--activation-checkpointing`", "MB", recomputing, bar=Bar(RECOMPUTING_BAR_MB, of="ours"))
    ours, theirs = map(moved_bytes, meta_pair())
    for name, index in ((MOVED, 0), (MOVED_ONCE, 1)):
        yield Figure(name, "MB", Series("ours", [ours[index] / 1e6]), Series("timm", [theirs[index] / 1e6]))
    model, _ = meta_pair()
    # A multiply-add is two operations; the backward pass computes two products for each of the forward pass.
    yield Figure(FLOPS, "GFLOP", Series("ours", [3 * 2 * multiply_adds(model) / 1e9]))
    yield Figure(GRADIENTS, "MB", Series("ours", [gradient_bytes(model) / 1e6]))
    yield Figure(PARAMETERS, "M", Series("ours", [parameter_count(model) / 1e6]))


BENCHMARK = Benchmark(
    name="step_counts",
    title="Counts of a training step of pnasnet5large",
    method=f"Exact counts at {SIDE} px, without auxiliary head, dropout and drop-path, the same on every "
    "machine. Views and empty tensors start nothing on a device and are no launches. Bytes moved are of fp16 "
    "tensors: an operator reads each of its tensors and writes each of its results once.",
    measure=measure,
    packages=("torch", "timm"),
)


if __name__ == "__main__":
    sys.exit(run(BENCHMARK))
