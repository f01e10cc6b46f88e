"""The network's cost: parameters and multiply-adds as published, and no ReLU or max-pool computed twice."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.report import RESULTS, read_result
from benchmarks.step_counts import (
    Launches,
    gradient_bytes,
    launches,
    measure,
    meta_pair,
    moved_bytes,
    multiply_adds,
    parameter_count,
    saved_bytes,
)
from trainer.model.pnasnet import LARGE, MOBILE, TINY, PNASNet5, Scale


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
        assert parameter_count(PNASNet5(scale, **options)) == expected


@pytest.mark.parametrize(
    ("scale", "side", "expected"),
    # slim README: 588 million for mobile at 224. timm's results table: 25.04 G for large at 331.
    [(MOBILE, 224, 588_700_000), (LARGE, 331, 25_040_000_000)],
)
def test_multiply_adds_are_the_published_ones(scale: Scale, side: int, expected: int) -> None:
    with torch.device("meta"):
        model = PNASNet5(scale, 1001)
    assert multiply_adds(model, side) == pytest.approx(expected, rel=0.005)


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


def test_a_training_pass_has_four_fifths_of_timms_launches() -> None:
    ours, theirs = (launches(model).calls for model in meta_pair())
    assert (ours.total(), theirs.total()) == (1717, 2155)
    assert ours.total() <= 0.80 * theirs.total()
    # The additions: one for all counters of batches; the sums of the cells; gradients of what several operators read.
    assert (ours["add_"], ours["add"]) == (1, 5 * 14 + 9 * 14 + 4)
    assert (ours["copy_"], ours["clone"], ours["contiguous"]) == (2, 0, 0)


def test_drop_path_adds_three_launches_for_each_branch() -> None:
    plain, dropping = (launches(meta_pair(drop_path=rate)[0]).calls for rate in (0.0, 0.4))
    # The draw of all factors is eight operators. A factor costs one in each direction; of two branches, one factor's
    # operator adds as well.
    assert dropping.total() - plain.total() == 8 + 14 * (5 + 9)


def test_bytes_kept_for_the_backward_pass() -> None:
    ours, theirs = map(saved_bytes, meta_pair())
    assert (ours, theirs) == (372_168_282, 561_738_762)
    recomputing, _ = meta_pair(checkpoint_cells=True)
    assert saved_bytes(recomputing) == 90_573_426


def test_launches_and_bytes_of_small_passes() -> None:
    counter = Launches()
    with torch.device("meta"):
        x, y = torch.empty(2, 3), torch.empty(2, 3)
    with counter:
        (x.t() + y.t()).relu_()
    assert counter.calls == {"add": 1, "relu_": 1}
    assert counter.moved_bytes == (2 + 1) * 24 + (1 + 1) * 24


def test_moved_bytes_are_split_into_a_part_of_images_and_a_part_of_the_step() -> None:
    model = nn.Linear(4, 2, bias=False, device="meta")
    model.register_forward_pre_hook(lambda _module, inputs: inputs[0][:, 0, 0, :4])
    # Forward: 4 in, 2 out; the sum reads 2. Backward: the gradient (2) and the image (4) give the weight's (8).
    # Of a step: the weight (8) is read; the sum and its gradient are single numbers.
    of_image, of_step = moved_bytes(model)
    assert of_image == 2 * (4 + 2 + 2 + 2 + 4)
    assert of_step >= 2 * (8 + 8)


def test_gradients_of_batch_norm_are_exchanged_in_fp32() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4))
    assert gradient_bytes(model) == 2 * 12 + 4 * 8


def test_the_code_has_the_published_counts() -> None:
    assert read_result(RESULTS / "step_counts.json").figures == tuple(measure()), (
        "run `python -m benchmarks.step_counts`, then `make generate`"
    )
