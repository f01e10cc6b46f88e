"""A network for evaluation without batch norms: each is a factor and a bias of the convolution before it.

Out of training a norm is the same line for every pixel of a channel, so that the folded network is the same function,
by 201 fewer passes over the maps of the large network. It rounds otherwise: weights of files are never folded.
"""

import copy

import torch
from torch import Tensor, nn

from trainer.model.layers import FactorizedReduction, Projection, Separable
from trainer.model.pnasnet import PNASNet5


@torch.no_grad()
def folded(network: PNASNet5) -> PNASNet5:
    """Return a copy for evaluation only: norms folded into convolutions, no auxiliary head. `network` is unchanged.

    A network whose `forward` was replaced, as apex does, is returned itself, in evaluation mode: a copy would call the
    replacement, which runs the network that it was made for.
    """
    if "forward" in vars(network):
        return network.eval()
    result = copy.deepcopy(network).requires_grad_(False).eval()
    result.aux = None
    for module in list(result.modules()):
        if isinstance(module, Separable):
            _fold(module, "bn_sep_1", module.separable_1[1])
            _fold(module, "bn_sep_2", module.separable_2[1])
        elif isinstance(module, Projection):
            _fold(module, "bn", module.conv)
        elif isinstance(module, FactorizedReduction):
            _fold(module, "final_path_bn", module.path_1[0], module.path_2[0])
    _fold(result.conv_0, "bn", result.conv_0[0])
    return result


def _fold(owner: nn.Module, name: str, *convolutions: nn.Module) -> None:
    """Fold the norm `name` of `owner` into the convolutions whose outputs, one behind the other, are its channels."""
    norm = owner.get_submodule(name)
    assert isinstance(norm, nn.BatchNorm2d)
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    factor = norm.weight * torch.rsqrt(variance + norm.eps)
    bias = norm.bias - mean * factor
    channels = [_weight(convolution).shape[0] for convolution in convolutions]
    for convolution, factors, biases in zip(convolutions, factor.split(channels), bias.split(channels), strict=True):
        weight = _weight(convolution)
        weight.copy_(weight * factors[:, None, None, None])
        convolution.register_parameter("bias", nn.Parameter(biases.to(weight.dtype), requires_grad=False))
    owner.register_module(name, nn.Identity())


def _weight(convolution: nn.Module) -> Tensor:
    return convolution.get_parameter("weight")
