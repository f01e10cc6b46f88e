"""`--compile`: the training network as kernels that torch's compiler writes for this machine.

The loss, the optimizer and evaluations, which use a copy of the network, stay eager. Layers draw as eager ones do,
so that a compiled run differs from an eager one only by how its kernels round.
"""

import importlib
import os
from typing import Any

import torch
from torch import Tensor, nn

from trainer.distributed.watchdog import Watchdog
from trainer.shared.errors import UsageError

_OPTIONS: dict[str, Any] = {
    "fallback_random": True,
    # Left to itself, torch 2.14.1 keeps channels-last only in graphs with forward convolutions. In a backward graph it
    # takes the order from the strides of a weight's gradient, which a depthwise one leaves open, and copies each map.
    "force_layout_optimization": True,
}


def compile_network(network: nn.Module, device: torch.device, watchdog: Watchdog | None = None) -> None:
    """Let calls of `network` run compiled kernels: for each number of images the first call takes minutes.

    Args:
        network: of which later copies stay eager.
        device: of the network.
        watchdog: is told of each compilation, of backward passes too.

    Raises:
        UsageError: the device or this machine cannot do it.
    """
    if device.type == "npu":
        raise UsageError("--compile: no compiler for an NPU has been tried with the trainer: leave --compile out")
    # torch reads it when it is imported.
    if os.environ.get("TORCH_COMPILE_DISABLE") == "1":
        raise UsageError(
            "--compile: TORCH_COMPILE_DISABLE=1 lets torch compile nothing: unset it, or leave --compile out"
        )
    try:
        if watchdog is not None:
            _tell_of_compilations(watchdog)
        # Without its headers or a linker a compiler is not enough: a small kernel shows it before the data is read.
        torch.compile(_increment, options=_OPTIONS)(torch.zeros(2, device=device))
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"--compile: torch cannot compile on this machine: {reason}: install what it lacks (on a CPU g++, "
            "Python's headers and a cache folder, TORCHINDUCTOR_CACHE_DIR), or leave --compile out"
        ) from error
    # Of a network for any number of images the kernels would be slower.
    network.compile(dynamic=False, options=_OPTIONS)


def _tell_of_compilations(watchdog: Watchdog) -> None:
    # Typed as Any: the module is not imported before it is needed, and has no types for these.
    compiler: Any = importlib.import_module("torch._dynamo")
    compiler.on_compile_start(lambda _: watchdog.begin_compilation())
    compiler.on_compile_end(lambda _: watchdog.end_compilation())


def _increment(x: Tensor) -> Tensor:
    return x + 1
