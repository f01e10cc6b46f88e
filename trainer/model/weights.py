"""Weights go into a network that they fit, or an error says why they do not; a network's weights go to a file.

Loading never guesses: the scale, the classes and the function of the borders must agree. The auxiliary head is the one
exception, because evaluation does not use it: it is loaded where file and network have the same one, else left alone.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from trainer.model.pnasnet import PNASNet5
from trainer.model.weight_files import DataConfig, Weights, metadata_of
from trainer.shared.errors import TrainerError, UsageError
from trainer.shared.files import replacing

AUX = "aux."
HEADS = ("last_linear.", "aux.classifier.")


def load_weights(model: PNASNet5, weights: Weights, *, replace_head: bool = False) -> None:
    """Copy weights into a network of the same scale, padding and classes.

    Tensors named `aux.*` are copied if the network has an auxiliary head of the same shapes; otherwise the file's are
    left out and the network's keep their values.

    Args:
        replace_head: leave the classifiers out; the network's own, of any number of classes, keep their values.

    Raises:
        UsageError: the weights belong to another scale, padding or number of classes; the network is unchanged.
    """
    if weights.padding != model.padding:
        raise UsageError(
            f"weights {weights.path}: trained with padding {weights.padding}, but the network has padding "
            f"{model.padding} and would compute nonsense; give --padding {weights.padding}"
        )
    if weights.num_classes != model.num_classes and not replace_head:
        raise UsageError(
            f"weights {weights.path}: made for {weights.num_classes} classes, but the network has "
            f"{model.num_classes}; use --mode finetune to train a new classifier on them"
        )
    left_out = HEADS if replace_head else ()
    wanted, offered = _without(model.state_dict(), left_out), _without(weights.state_dict, left_out)
    if _shapes(wanted, AUX) != _shapes(offered, AUX):
        wanted, offered = _without(wanted, (AUX,)), _without(offered, (AUX,))
    differing = sorted(name for name, _ in _shapes(wanted) ^ _shapes(offered))
    if differing:
        raise UsageError(
            f"weights {weights.path}: do not fit {model.scale.name}: {differing[0]} is missing, unknown or of another "
            f"shape; choose the --model that they were made for"
        )
    model.load_state_dict(offered, strict=False)


def _without(tensors: Mapping[str, Tensor], prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefixes)}


def _shapes(tensors: Mapping[str, Tensor], prefix: str = "") -> set[tuple[str, torch.Size]]:
    """Names and shapes of all tensors but the batch counters, which files of old PyTorch versions lack."""
    return {
        (name, tensor.shape)
        for name, tensor in tensors.items()
        if name.startswith(prefix) and not name.endswith("num_batches_tracked")
    }


def save_weights(path: Path, model: PNASNet5, data: DataConfig) -> None:
    """Write a network's weights and their description as safetensors.

    Raises:
        TrainerError: the file cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_weights(path, tensors, describe(model, data))


def describe(model: PNASNet5, data: DataConfig) -> dict[str, str]:
    """What a weight file says of itself."""
    return metadata_of(model.scale.name, model.padding, model.num_classes, data)


def write_weights(path: Path, tensors: Mapping[str, Tensor], description: dict[str, str]) -> None:
    """Write tensors on the CPU and their description as safetensors; the file is whole or not there at all.

    Raises:
        TrainerError: the file cannot be written.
    """
    try:
        with replacing(path) as partial:
            save_file(dict(tensors), partial, description)
    except (OSError, SafetensorError) as error:
        raise TrainerError(
            f"weights {path}: cannot be written ({error}); free space or choose another folder"
        ) from error
