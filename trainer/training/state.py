"""A training's state as named tensors and plain values: everything that the next step depends on.

Weights, average, optimizer state and loss scale are the same on all ranks. Batch statistics and generators are each
rank's own and lie side by side in `ranks.*`. Random draws need only the position in the run, which is their key.
"""

import importlib.metadata
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from trainer.distributed.process_group import gather
from trainer.training.steps import Training

MASTER = ".master"
"""How the name of a master weight ends: O2's fp32 copy of an fp16 parameter."""


def state_tensors(training: Training) -> dict[str, Tensor]:
    """Return the state's tensors, still on the device and still live. Every rank calls it; rank 0 has the whole state.

    `model.*`, `ema.*` and `optimizer.*` are named as in PNASNet5; `ranks.batch_norm` is (W, n) fp32 and `ranks.rng` and
    `ranks.device_rng` are (W, bytes) uint8, for W ranks.
    """
    runtime = training.runtime
    own = {
        "ranks.batch_norm": training.statistics.flat,
        "ranks.rng": torch.get_rng_state(),
        **({} if runtime.kind == "cpu" else {"ranks.device_rng": runtime.rng_state()}),
    }
    ranks = {name: gather(tensor, training.group) for name, tensor in own.items()}
    return {name: tensor.detach() for name, tensor in shared_tensors(training)} | ranks


def state_values(training: Training) -> dict[str, Any]:
    """Return the state's plain values."""
    return {
        "precision": training.precision.state_dict(),
        "ema_updates": None if training.ema is None else training.ema.updates,
    }


def shared_tensors(training: Training) -> Iterator[tuple[str, Tensor]]:
    """Yield name and tensor of all that is the same on all ranks."""
    for name, tensor in training.network.state_dict().items():
        yield f"model.{name}", tensor
    if training.ema is not None:
        for name, tensor in training.ema.model.state_dict().items():
            yield f"ema.{name}", tensor
    parameters = dict(training.network.named_parameters())
    for group in training.optimizer.param_groups:
        for name, used in zip(group["names"], group["params"], strict=True):
            if used is not parameters[name]:
                yield f"optimizer.{name}{MASTER}", used
            for kind, value in sorted(training.optimizer.state.get(used, {}).items()):
                if isinstance(value, Tensor):
                    yield f"optimizer.{name}.{kind}", value


def numerics_fingerprint(training: Training) -> dict[str, Any]:
    """Return what the bits of a result depend on, apart from the settings."""
    return {
        "device": training.runtime.kind,
        "device_name": training.runtime.name(),
        "precision": training.precision.name,
        "threads": torch.get_num_threads(),
        "channels_last": training.config.channels_last,
        "micro_batch": training.micro_batch,
        "world_size": training.world_size,
        "batch_size": training.config.batch_size,
        "accumulate": training.config.accumulate,
        "torch": str(torch.__version__),
        # It decodes and resizes the images.
        "torchvision": importlib.metadata.version("torchvision"),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "mkldnn": os.environ.get("ONEDNN_MAX_CPU_ISA"),
    }
