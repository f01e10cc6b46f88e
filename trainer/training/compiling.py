"""`--compile`: the training network as kernels that torch's compiler writes for this machine.

The loss, the optimizer and evaluations, which use a copy of the network, stay eager. Layers draw as eager ones do,
so that a compiled run differs from an eager one only by how its kernels round.
"""

from typing import Any

import torch
from torch import Tensor, nn

from trainer.shared.errors import UsageError

_OPTIONS: dict[str, Any] = {"fallback_random": True}


def compile_network(network: nn.Module, device: torch.device) -> None:
    """Let calls of `network` run compiled kernels: for each number of images the first call takes minutes.

    Raises:
        UsageError: the device or this machine cannot do it.
    """
    if device.type == "npu":
        raise UsageError("--compile: no compiler for an NPU has been tried with the trainer: leave --compile out")
    try:
        # Without its headers or a linker a compiler is not enough: a small kernel shows it before the data is read.
        torch.compile(_increment, options=_OPTIONS)(torch.zeros(2, device=device))
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"--compile: torch cannot compile on this machine: {reason}: install what it lacks (on a CPU g++ and "
            "Python's headers), or leave --compile out"
        ) from error
    # Of a network for any number of images the kernels would be slower.
    network.compile(dynamic=False, options=_OPTIONS)


def _increment(x: Tensor) -> Tensor:
    return x + 1
