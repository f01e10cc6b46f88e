"""The network's cost: parameters and multiply-adds as published, and no ReLU or max-pool computed twice."""

from collections import Counter
from typing import Any

import pytest
import timm
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


class _Launches(TorchDispatchMode):
    """How often each operator runs that computes: views and empty tensors start nothing on a device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reads = [argument.alias_info for argument in func._schema.arguments]
        is_view = any(alias and not alias.is_write for alias in reads)
        if not is_view and "empty" not in str(func):
            self.calls[str(func).split(".")[1]] += 1
        return func(*args, **(kwargs or {}))


def _launches(model: nn.Module) -> Counter[str]:
    """Count the operators of a forward and backward pass in training, two images of 331 pixels."""
    launches = _Launches()
    with launches:
        model.train()(torch.empty(2, 3, 331, 331, device="meta")).sum().backward()
    return launches.calls


def _meta_pair(**options: Any) -> tuple[PNASNet5, nn.Module]:
    with torch.device("meta"):
        return PNASNet5(LARGE, dropout=0.0, **options), timm.create_model("pnasnet5large")


def test_a_training_pass_has_four_fifths_of_timms_launches() -> None:
    ours, theirs = map(_launches, _meta_pair())
    assert (ours.total(), theirs.total()) == (1717, 2155)
    assert ours.total() <= 0.80 * theirs.total()
    # The additions: one for all counters of batches; the sums of the cells; gradients of what several operators read.
    assert (ours["add_"], ours["add"]) == (1, 5 * 14 + 9 * 14 + 4)
    assert (ours["copy_"], ours["clone"], ours["contiguous"]) == (2, 0, 0)


def test_drop_path_adds_three_launches_for_each_branch() -> None:
    plain, dropping = (_launches(_meta_pair(drop_path=rate)[0]) for rate in (0.0, 0.4))
    # The draw of all factors is nine operators. A factor costs one in each direction; of two branches, one factor's
    # operator adds as well.
    assert dropping.total() - plain.total() == 9 + 14 * (5 + 9)


def _saved_bytes(model: nn.Module) -> int:
    """Return the bytes that a forward pass of one image in fp16 keeps for the backward pass."""
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    model = model.half().train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = model(torch.empty(1, 3, 331, 331, dtype=torch.float16, device="meta"))
    assert result.requires_grad
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in kept}
    of_model = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    return sum(storage.nbytes() for key, storage in storages.items() if key not in of_model)


def test_bytes_kept_for_the_backward_pass() -> None:
    ours, theirs = map(_saved_bytes, _meta_pair())
    assert (ours, theirs) == (372_168_282, 561_738_762)
    recomputing, _ = _meta_pair(checkpoint_cells=True)
    assert _saved_bytes(recomputing) == 90_573_426
