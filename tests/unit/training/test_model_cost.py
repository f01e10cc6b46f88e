"""The network's cost: parameters and multiply-adds as published, and no ReLU or max-pool computed twice."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.model.pnasnet import LARGE, MOBILE, TINY, PNASNet5, Scale


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _multiply_adds(model: PNASNet5, side: int) -> int:
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


@pytest.mark.parametrize(
    ("scale", "options", "expected"),
    [
        (LARGE, {}, 86_057_668),
        (LARGE, {"num_classes": 1001}, 86_061_989),
        (LARGE, {"aux": "seed"}, 88_266_156),
        # slim nasnet.py, _build_aux_head on 2,160 x 21 x 21: 2160 * 128 + 2 * 128, 128 * 768 * 36 + 2 * 768, 769,000
        (LARGE, {"aux": "tf"}, 86_057_668 + 4_586_216),
        # slim README: PNASNet-5_Mobile_224 has 5.1 M parameters, with the background class.
        (MOBILE, {"num_classes": 1001}, 5_065_568),
        (TINY, {"num_classes": 10}, 131_754),
    ],
)
def test_parameter_count_is_the_published_one(scale: Scale, options: dict[str, Any], expected: int) -> None:
    with torch.device("meta"):
        assert _parameters(PNASNet5(scale, **options)) == expected


@pytest.mark.parametrize(
    ("scale", "side", "expected"),
    # slim README: 588 million for mobile at 224. timm's results table: 25.04 G for large at 331.
    [(MOBILE, 224, 588_700_000), (LARGE, 331, 25_040_000_000)],
)
def test_multiply_adds_are_the_published_ones(scale: Scale, side: int, expected: int) -> None:
    with torch.device("meta"):
        model = PNASNet5(scale, 1001)
    assert _multiply_adds(model, side) == pytest.approx(expected, rel=0.005)


class _Calls(TorchDispatchMode):
    """How often each operator runs, and how many elements the ReLUs touch."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.calls: Counter[str] = Counter()
        self.relu_elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).split(".")[1].rstrip("_")
        self.calls[name] += 1
        if name == "relu":
            self.relu_elements += args[0].numel()
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("padding", ["exact", "seed"])
def test_each_distinct_relu_and_max_pool_is_computed_once(padding: Any) -> None:
    with torch.device("meta"):
        model = PNASNet5(LARGE, padding=padding)
        x = torch.empty(1, 3, 331, 331)
    with _Calls() as forward:
        model(x)
    # Per cell: both its inputs after projection (the first cell reads the stem's unprojected), the middle of six
    # separables, the third sum, and the output that the next two cells share. The stem's convolution has one.
    cells = 14
    assert forward.calls["relu"] == cells * (2 + 6 + 1 + 1) - 1 + 1
    assert forward.calls["max_pool2d_with_indices"] == cells * 2
    # 94.19 M when each branch computes its own.
    assert forward.relu_elements == pytest.approx(51_880_000, abs=5_000)
