"""The folded network is the same function without batch norms, and changes nothing of the network it is made of."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from trainer.model.folding import folded
from trainer.model.pnasnet import MOBILE, TINY, PNASNet5, Scale


def _trained(scale: Scale, padding: Any = "exact") -> PNASNet5:
    """Return a network whose norms have their own statistics, as after a training."""
    torch.manual_seed(1)
    network = PNASNet5(scale, 10, "tf", padding)
    for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, -1.5, 1.5)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.get_buffer("running_mean"))
        nn.init.uniform_(norm.get_buffer("running_var"), 0.5, 1.5)
    return network


@pytest.mark.parametrize("padding", ["exact", "seed"])
@pytest.mark.parametrize(("scale", "height", "width"), [(MOBILE, 64, 75), (MOBILE, 33, 46), (TINY, 32, 35)])
def test_logits_are_equal_in_float64(scale: Scale, padding: Any, height: int, width: int) -> None:
    network = _trained(scale, padding).double().eval()
    images = torch.randn(2, 3, height, width, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(folded(network)(images), network(images), rtol=0, atol=1e-6)


def test_the_network_keeps_its_norms_weights_and_mode() -> None:
    network = _trained(TINY).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    copy = folded(network)
    assert network.training
    assert not copy.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in copy.modules())
    assert not any(parameter.requires_grad for parameter in copy.parameters())


def test_a_folded_network_can_be_moved_and_converted() -> None:
    network = folded(_trained(TINY)).double().to(memory_format=torch.channels_last)
    assert network(torch.randn(2, 3, 32, 32, dtype=torch.float64)).shape == (2, 10)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("threads", [1, 2])
def test_packed_weights_give_the_same_logits_for_maps_of_any_size(layout: Any, threads: int) -> None:
    network = _trained(TINY).eval().to(memory_format=layout)
    copy, before = folded(network), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            for images, height, width in ((2, 33, 46), (17, 35, 35), (2, 33, 46)):
                x = torch.randn(images, 3, height, width).to(memory_format=layout)
                torch.testing.assert_close(copy(x), network(x), rtol=1e-3, atol=1e-3)
    finally:
        torch.set_num_threads(before)


def test_packed_weights_follow_conversions_and_leave_autocast_and_gradients_to_torch() -> None:
    network = _trained(TINY).eval()
    copy, x = folded(network), torch.randn(2, 3, 32, 32)
    logits = copy(x)
    assert logits.dtype is torch.float32
    assert copy.double()(x.double()).dtype is torch.float64
    assert torch.equal(copy.float()(x), logits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert copy(x).dtype is torch.bfloat16
    x.requires_grad_()
    copy(x).sum().backward()
    assert x.grad is not None


def test_folding_takes_no_multiply_add_away() -> None:
    # In fp64: the counter does not know oneDNN's own operators.
    network = _trained(TINY).double().eval()
    counts = []
    for model in (network, folded(network)):
        with FlopCounterMode(display=False) as counter:
            model(torch.randn(1, 3, 32, 32, dtype=torch.float64))
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_a_network_whose_forward_was_replaced_is_evaluated_itself() -> None:
    network, images = _trained(TINY), torch.randn(2, 3, 32, 32)
    expected = network.eval()(images)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    original = network.train().forward
    network.forward = original  # type: ignore[method-assign]  # as apex does, with casts around it
    assert torch.equal(folded(network)(images), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
