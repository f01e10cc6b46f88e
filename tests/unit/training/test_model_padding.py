"""Strided layers are TensorFlow's SAME for every height and width, without a zero-pad."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F  # noqa: N812  # the name that every PyTorch program uses
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.model.layers import DepthwiseConv2d, EvenPixelConv2d, MaxPool2d, OddPixelConv2d
from trainer.model.pnasnet import LARGE, TINY, PNASNet5

SIDES = (*range(1, 15), 21, 28)
Operation = Callable[[Tensor], Tensor]


def _padded_same(x: Tensor, kernel: int, stride: int, value: float) -> Tensor:
    """TensorFlow's definition, https://www.tensorflow.org/api_docs/python/tf/nn#notes_on_padding_2, in full."""
    pads: list[int] = []
    for side in reversed(x.shape[2:]):
        outputs = -(-side // stride)
        total = max((outputs - 1) * stride + kernel - side, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads, value=value)


def _depthwise_case(kernel: int, stride: int) -> tuple[nn.Module, Operation]:
    conv = DepthwiseConv2d(6, kernel, stride, "exact").double()
    return conv, lambda x: F.conv2d(_padded_same(x, kernel, stride, 0.0), conv.weight, stride=stride, groups=6)


def _pool_case(stride: int) -> tuple[nn.Module, Operation]:
    return MaxPool2d(stride, "exact"), lambda x: F.max_pool2d(_padded_same(x, 3, stride, -torch.inf), 3, stride)


def _even_case() -> tuple[nn.Module, Operation]:
    conv = EvenPixelConv2d(6, 4).double()
    return conv, lambda x: F.conv2d(_padded_same(x, 1, 2, 0.0), conv.weight, stride=2)


def _odd_case() -> tuple[nn.Module, Operation]:
    # slim nasnet_utils.py, factorized_reduction: pad by one at the bottom and right, drop the first row and column.
    conv = OddPixelConv2d(6, 4).double()
    return conv, lambda x: F.conv2d(F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:], conv.weight, stride=2)


CASES = {f"depthwise {k} stride {s}": lambda k=k, s=s: _depthwise_case(k, s) for k in (3, 5, 7) for s in (1, 2)} | {
    "max-pool stride 1": lambda: _pool_case(1),
    "max-pool stride 2": lambda: _pool_case(2),
    "even pixels": _even_case,
    "odd pixels": _odd_case,
}


@pytest.mark.parametrize("case", CASES)
def test_strided_layer_is_tensorflow_same_for_every_height_and_width(case: str) -> None:
    torch.manual_seed(0)
    layer, reference = CASES[case]()
    for height, width in itertools.product(SIDES, SIDES):
        x = (torch.randn(2, 6, height, width, dtype=torch.float64) - 3).requires_grad_()
        expected, actual = reference(x), layer(x)
        assert actual.shape == expected.shape, f"{height} x {width}"
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
        weight = torch.randn_like(expected)
        gradients = [torch.autograd.grad(y, x, weight)[0] for y in (actual, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


class _Operators(TorchDispatchMode):
    """Names of all operators that run, but for crops: torch takes these for pads of less than nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.aten.constant_pad_nd.default or max(args[1]) > 0:
            self.names.add(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("side", [98, 99, 331])
@pytest.mark.parametrize("padding", ["exact", "seed"])
def test_no_forward_executes_a_zero_pad(padding: Any, side: int) -> None:
    with torch.device("meta"):
        ours, theirs = PNASNet5(LARGE, aux="seed", padding=padding, drop_path=0.4), timm.create_model("pnasnet5large")
        x = torch.empty(2, 3, side, side)
    for training in (True, False):
        assert not _pads(ours.train(training), x)
    assert _pads(theirs, x), "the check does not see timm's zero-pads, so it proves nothing"


def _pads(model: nn.Module, x: Tensor) -> set[str]:
    with _Operators() as operators:
        model(x)
    return {name for name in operators.names if "pad" in name}


def test_paddings_are_different_functions() -> None:
    torch.manual_seed(0)
    exact, seed = PNASNet5(TINY, 10).eval(), PNASNet5(TINY, 10, padding="seed").eval()
    seed.load_state_dict(exact.state_dict())
    x = torch.randn(2, 3, 33, 33)
    assert not torch.allclose(exact(x), seed(x))


def test_unknown_padding_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one of exact, seed"):
        PNASNet5(TINY, padding="same")  # type: ignore[arg-type]  # the mistake under test
