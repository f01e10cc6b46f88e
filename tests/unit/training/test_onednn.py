"""Convolutions that oneDNN computes fast only if they are asked for in another way: the same values, by its kernels."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # the name that every PyTorch program uses
from torch import Tensor

from trainer.model import onednn
from trainer.model.layers import DepthwiseConv2d, PointwiseConv2d

CHANNELS = onednn.FEWEST_CHANNELS


def _images(height: int, width: int, channels: int = CHANNELS) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, channels, height, width).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("kernel", onednn.STRIPS)
@pytest.mark.parametrize(("height", "width"), [(7, 7), (8, 9), (3, 11), (42, 42), (21, 8)])
def test_strips_have_the_gradients_of_the_whole_convolution(kernel: int, height: int, width: int) -> None:
    x = _images(height, width).requires_grad_()
    weight = torch.randn(CHANNELS, 1, kernel, kernel, requires_grad=True)
    factors = torch.randn(2, CHANNELS, height, width)
    y = onednn.depthwise(x, weight)
    y.backward(factors.to(memory_format=torch.channels_last))

    exact_x, exact_weight = (one.detach().double().requires_grad_() for one in (x, weight))
    exact = F.conv2d(exact_x, exact_weight, padding=kernel // 2, groups=CHANNELS)
    exact.backward(factors.double())
    for ours, theirs in ((y, exact), (x.grad, exact_x.grad), (weight.grad, exact_weight.grad)):
        assert ours is not None
        assert theirs is not None
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", onednn.STRIPS)
def test_a_map_that_needs_no_gradient_gets_none(kernel: int) -> None:
    x = _images(9, 9)
    weight = torch.randn(CHANNELS, 1, kernel, kernel, requires_grad=True)
    onednn.depthwise(x, weight).sum().backward()
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


def test_onednn_computes_what_torch_would_not_have_asked_it_for() -> None:
    program = """
import torch
from trainer.model import onednn
from trainer.model.layers import PointwiseConv2d
torch.set_num_threads(1)
x = torch.randn(2, 64, 9, 9).to(memory_format=torch.channels_last).requires_grad_()
PointwiseConv2d(64, 64)(x).sum().backward()
print("strips")
for kernel in onednn.STRIPS:
    onednn.depthwise(x, torch.randn(64, 1, kernel, kernel, requires_grad=True)).sum().backward()
"""
    environ = os.environ | {"ONEDNN_VERBOSE": "profile_exec"}
    output = subprocess.run([sys.executable, "-c", program], env=environ, check=True, capture_output=True, text=True)
    pointwise, strips = (
        [line for line in part.splitlines() if ",exec,cpu,convolution," in line]
        for part in output.stdout.split("strips\n")
    )
    assert len(pointwise) == 3, output.stdout  # forward, and the gradients of map and weight
    of_weights = [line for line in strips if ",backward_weights," in line]
    assert len(of_weights) == sum(map(len, onednn.STRIPS.values()))
    assert all(",jit_dw:" in line for line in of_weights), output.stdout
