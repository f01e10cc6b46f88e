"""Convolutions that oneDNN computes fast only if they are asked for in another way: the same values, by its kernels."""

import copy
import os
import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # the name that every PyTorch program uses
from torch import Tensor

from benchmarks.model_step import CONVOLUTIONS
from trainer.model import onednn
from trainer.model.join import is_channels_last
from trainer.model.layers import PADDINGS, DepthwiseConv2d, Padding, PointwiseConv2d

CHANNELS = onednn.FEWEST_CHANNELS
DILATED = re.compile(r"_ih\d+oh\d+kh\d+sh\d+dh[1-9]")
"""In a line about a convolution that oneDNN has executed; it counts dilation from 0."""


def _images(height: int, width: int, channels: int = CHANNELS) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, channels, height, width).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("kernel", onednn.STRIPS)
@pytest.mark.parametrize(("height", "width"), [(7, 7), (8, 9), (3, 11), (42, 42), (21, 8)])
@pytest.mark.parametrize(("stride", "more"), [(1, 0), (2, 0), (2, 1)])
def test_strips_have_the_gradients_of_the_whole_convolution(
    kernel: int, height: int, width: int, stride: int, more: int
) -> None:
    padding = kernel // 2 + more, kernel // 2 + more  # one more in maps of even sides
    x = _images(height, width).requires_grad_()
    weight = torch.randn(CHANNELS, 1, kernel, kernel, requires_grad=True)
    y = onednn.depthwise(x, weight, stride, padding)
    factors = torch.randn(y.shape)
    y.backward(factors.to(memory_format=torch.channels_last))

    exact_x, exact_weight = (one.detach().double().requires_grad_() for one in (x, weight))
    exact = F.conv2d(exact_x, exact_weight, None, stride, padding, groups=CHANNELS)
    exact.backward(factors.double())
    for ours, theirs in ((y, exact), (x.grad, exact_x.grad), (weight.grad, exact_weight.grad)):
        assert ours is not None
        assert theirs is not None
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", [8, 9])
@pytest.mark.parametrize("padding", PADDINGS)
def test_a_strided_layer_has_the_gradients_of_its_exact_self(
    monkeypatch: pytest.MonkeyPatch, side: int, padding: Padding
) -> None:
    monkeypatch.setattr(onednn, "CAPABILITY", "AVX512")
    layer = DepthwiseConv2d(CHANNELS, 5, 2, padding)
    exact = copy.deepcopy(layer).double()
    x = _images(side, side)
    y, exact_y = layer(x), exact(x.double())
    assert "_Depthwise" in _history(y)
    assert "_Depthwise" not in _history(exact_y)
    factors = torch.randn(y.shape)
    y.backward(factors)
    exact_y.backward(factors.double())
    torch.testing.assert_close(y.double(), exact_y, rtol=1e-4, atol=1e-4)
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad.double(), exact.weight.grad, rtol=1e-4, atol=1e-4)


def _history(y: Tensor) -> str:
    """Return the names of the last two operators whose gradients `y` has; a crop may be the last."""
    last = y.grad_fn
    assert last is not None
    return f"{last} {last.next_functions[0][0]}"


@pytest.mark.parametrize("kernel", onednn.STRIPS)
def test_a_map_that_needs_no_gradient_gets_none(kernel: int) -> None:
    x = _images(9, 9)
    weight = torch.randn(CHANNELS, 1, kernel, kernel, requires_grad=True)
    onednn.depthwise(x, weight, 1, (kernel // 2, kernel // 2)).sum().backward()
    assert x.grad is None
    assert weight.grad is not None


@pytest.mark.parametrize(
    ("kernel", "side", "channels", "strips"),
    [
        (5, 9, CHANNELS, True),
        (7, 9, CHANNELS, True),
        (3, 9, CHANNELS, False),  # torch's own is the fast kernel
        (5, 4, CHANNELS, False),  # a strip would lie outside the map
        (5, 9, CHANNELS - 1, False),
    ],
)
def test_only_maps_that_gain_are_split(
    monkeypatch: pytest.MonkeyPatch, kernel: int, side: int, channels: int, strips: bool
) -> None:
    monkeypatch.setattr(onednn, "CAPABILITY", "AVX512")
    x = _images(side, side, channels)
    layer = DepthwiseConv2d(channels, kernel, 1, "exact")
    assert onednn.takes_strips(x, layer.weight) is strips
    assert ("_Depthwise" in str(layer(x).grad_fn)) is strips
    assert not onednn.takes_strips(x.contiguous(), layer.weight)
    with torch.no_grad():
        assert not onednn.takes_strips(x, layer.weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert not onednn.takes_strips(x, layer.weight)
    assert not onednn.takes_strips(x.double(), layer.weight.double())


@pytest.mark.parametrize(
    ("images", "channels", "dilation"),
    [(2, 24, 2), (16, 24, 1), (2, 23, 1)],
)
def test_a_1x1_convolution_is_dilated_only_where_torch_would_not_ask_onednn(
    monkeypatch: pytest.MonkeyPatch, images: int, channels: int, dilation: int
) -> None:
    monkeypatch.setattr(onednn, "CAPABILITY", "AVX2")
    x = torch.randn(images, channels, 5, 5).to(memory_format=torch.channels_last)
    layer = PointwiseConv2d(channels, 30)
    assert onednn.pointwise_dilation(x, layer.weight) == dilation
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight))
    for nchw in (x.contiguous(), x.contiguous()[:, :, :1, :1].contiguous()):
        assert onednn.pointwise_dilation(nchw, layer.weight) == 1
    with torch.no_grad():
        assert onednn.pointwise_dilation(x, layer.weight) == 1


@pytest.mark.parametrize("side", [11, 17])  # one with fewer pixels than a small map has, one with more
@pytest.mark.parametrize("reads_nchw", [False, True])
def test_products_have_the_gradients_of_the_convolution(side: int, reads_nchw: bool) -> None:
    x = _images(side, side, onednn.WIDE).requires_grad_()
    weight = torch.randn(30, onednn.WIDE, 1, 1, requires_grad=True)
    assert (x.numel() // onednn.WIDE < onednn.SMALL_MAP) is (side == 11)
    factors = torch.randn(2, 30, side, side)
    y = onednn.pointwise(x, weight)
    assert is_channels_last(y)
    y.backward(factors if reads_nchw else factors.to(memory_format=torch.channels_last))

    exact_x, exact_weight = (one.detach().double().requires_grad_() for one in (x, weight))
    exact = F.conv2d(exact_x, exact_weight)
    exact.backward(factors.double())
    for ours, theirs in ((y, exact), (x.grad, exact_x.grad), (weight.grad, exact_weight.grad)):
        assert ours is not None
        assert theirs is not None
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("channels", "stride", "products"),
    [(onednn.WIDE, 1, True), (onednn.WIDE - 1, 1, False), (onednn.WIDE, 2, False)],
)
def test_only_wide_weights_are_trained_by_products(
    monkeypatch: pytest.MonkeyPatch, channels: int, stride: int, products: bool
) -> None:
    monkeypatch.setattr(onednn, "CAPABILITY", "AVX512")
    x = _images(5, 5, channels)
    layer = PointwiseConv2d(channels, 30, stride)
    assert ("_Pointwise" in str(layer(x).grad_fn)) is products
    assert "_Pointwise" not in str(layer(x.contiguous()).grad_fn)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, stride=stride), rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(onednn, "CAPABILITY", "AVX2")
    assert not onednn.takes_products(x, layer.weight)


@pytest.mark.parametrize(
    ("layer", "side", "calls"),
    [
        (PointwiseConv2d(onednn.WIDE, 30), 5, 3),  # forward, and each gradient
        (PointwiseConv2d(onednn.WIDE, 30), 17, 3),
        (PointwiseConv2d(onednn.WIDE, 30, 2), 5, 2),  # both gradients at once
        (DepthwiseConv2d(CHANNELS, 5, 1, "exact"), 9, 4),  # two strips
    ],
    ids=["wide, small map", "wide", "wide, strided", "strips"],
)
def test_a_benchmark_finds_all_kernels_of_a_convolution_for_its_floor(
    monkeypatch: pytest.MonkeyPatch, layer: torch.nn.Conv2d, side: int, calls: int
) -> None:
    monkeypatch.setattr(onednn, "CAPABILITY", "AVX512")
    x = _images(side, side, layer.in_channels).requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        layer(x).sum().backward()
    assert sum(event.count for event in profile.key_averages() if event.key in CONVOLUTIONS) == calls


EXECUTED = """
import torch
from trainer.model import onednn
from trainer.model.layers import DepthwiseConv2d, PointwiseConv2d
torch.set_num_threads(1)
wide = [
    (DepthwiseConv2d(64, kernel, stride, "exact"), side)
    for kernel in onednn.STRIPS
    for stride, side in ((1, 9), (2, 9), (2, 10))
]
for layer, side in [(PointwiseConv2d(64, 64), 9), (PointwiseConv2d(64, 64, 2), 9), *wide]:
    x = torch.randn(2, 64, side, side).to(memory_format=torch.channels_last).requires_grad_()
    kernel, stride = layer.kernel_size[0], layer.stride[0]
    print("layer", kernel, stride, onednn.has_onednn(x), onednn.takes_strips(x, layer.weight), flush=True)
    layer(x).sum().backward()
"""
"""Prints the product's decisions about each layer, and, with ONEDNN_VERBOSE, the convolutions that oneDNN executes."""


@pytest.mark.parametrize("capability", [None, "default"], ids=["this processor", "one without vectors"])
def test_onednn_computes_what_torch_would_not_have_asked_it_for_where_its_kernels_were_measured(
    capability: str | None,
) -> None:
    environ = os.environ | {"ONEDNN_VERBOSE": "profile_exec"}
    if capability:
        environ["ATEN_CPU_CAPABILITY"] = capability
    output = subprocess.run([sys.executable, "-c", EXECUTED], env=environ, check=True, capture_output=True, text=True)
    _, *parts = output.stdout.split("layer ")
    assert len(parts) == 2 + 3 * len(onednn.STRIPS)
    for part in parts:
        decisions, *lines = part.splitlines()
        kernel, stride, has_onednn, takes_strips = decisions.split()
        assert not (capability and "True" in (has_onednn, takes_strips))
        executed = [line for line in lines if ",exec,cpu,convolution," in line]
        of_weights = [line for line in executed if ",backward_weights," in line]
        dilated = [line for line in executed if DILATED.search(line)]
        if kernel == "1":  # forward, and the gradients of map and weight
            assert len(dilated) == (3 if has_onednn == "True" and stride == "1" else 0), part
            assert len(executed) == 3 or has_onednn == "False", part
        elif takes_strips == "True":
            assert len(of_weights) == len(onednn.STRIPS[int(kernel)]), part
            assert all(",jit_dw:" in line for line in of_weights), part
        else:
            assert len(of_weights) <= 1, part
