"""A training's state as named tensors and plain values, and back: everything that the next step depends on.

Weights, average, momentum and loss scale are the same on all ranks; batch statistics and generators are each rank's
own and lie side by side in `ranks.*`. Random draws need no more than the position, by which they are keyed.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from trainer.distributed.process_group import gather
from trainer.training.optimizer import begin_state
from trainer.training.steps import Training

MASTER = ".master"


def tensors_of(training: Training) -> dict[str, Tensor]:
    """The state's tensors, still on the device and still live. Every rank calls it; it is whole on rank 0.

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
    return {name: tensor.detach() for name, tensor in _shared(training)} | ranks


def values_of(training: Training) -> dict[str, Any]:
    """The state's plain values."""
    return {
        "precision": training.precision.state_dict(),
        "ema_updates": None if training.ema is None else training.ema.updates,
    }


@torch.no_grad()
def restore(
    training: Training, tensors: Mapping[str, Tensor], values: Mapping[str, Any], *, world_size: int
) -> list[str]:
    """Put a state into the parts of a run, in place, so that layouts and references stay.

    What the state lacks, because the run had no such part, begins anew: an average with the weights, momentum at zero.

    Args:
        world_size: of the run that saved it; if it is another one, each rank gets the mean batch statistics.

    Returns:
        What begins anew.

    Raises:
        KeyError: the state is of another network.
    """
    begun_anew = set()
    begin_state(training.optimizer, training.config)
    for name, tensor in _shared(training):
        part, _, rest = name.partition(".")
        master = f"optimizer.{rest}{MASTER}"
        if part == "model" and tensor.dtype == torch.float32 and master in tensors:
            tensor.copy_(tensors[master])  # the run was one in fp16
        elif name in tensors:
            tensor.copy_(tensors[name])
        elif part == "ema":
            tensor.copy_(tensors[f"model.{rest}"])
            begun_anew.add("ema")
        elif name.endswith(MASTER):
            tensor.copy_(tensors[f"model.{rest.removesuffix(MASTER)}"])
            begun_anew.add("master weights")
        elif part == "optimizer":
            begun_anew.add(name.rpartition(".")[2].removesuffix("_buffer"))
        else:
            raise KeyError(name)
    statistics = tensors["ranks.batch_norm"]
    same = world_size == training.world_size
    training.statistics.flat.copy_(statistics[training.rank] if same else statistics.mean(dim=0))
    if same:
        # Cloned: torch reads the state as if it lay aligned in memory, and dies where it does not.
        torch.set_rng_state(tensors["ranks.rng"][training.rank].clone())
        if "ranks.device_rng" in tensors:
            training.runtime.set_rng_state(tensors["ranks.device_rng"][training.rank].clone())
    scale = training.precision.state_dict()
    if scale.keys() & values["precision"].keys():
        training.precision.load_state_dict(values["precision"])
    elif scale:  # the run had none, or apex's, which is written in other words
        begun_anew.add("loss scale")
    if training.ema is not None:
        training.ema.updates = values["ema_updates"] or 0
    return sorted(begun_anew)


def _shared(training: Training) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in training.network.state_dict().items():
        yield f"model.{name}", tensor
    if training.ema is not None:
        for name, tensor in training.ema.model.state_dict().items():
            yield f"ema.{name}", tensor
    parameters = dict(training.network.named_parameters())
    for group in training.optimizer.param_groups:
        for name, used in zip(group["names"], group["params"], strict=True):
            if used is not parameters[name]:
                # O2 has fp32 masters of the network's fp16 parameters.
                yield f"optimizer.{name}{MASTER}", used
            for kind, value in sorted(training.optimizer.state.get(used, {}).items()):
                if isinstance(value, Tensor):
                    yield f"optimizer.{name}.{kind}", value
