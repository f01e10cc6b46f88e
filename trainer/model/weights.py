"""Weights go into a network that they fit, or an error says why they do not; a network's weights go to a file.

Loading never guesses: the scale, the classes and the function of the borders must match. The auxiliary head is the one
exception, because evaluation does not use it: it is loaded if file and network have the same one, and skipped if not.

Weights also bring settings along: images must be prepared as they were in their training. Another normalisation or crop
gives a wrong figure without any error. So these settings come from the weights unless the user set them:
flag > environment > profile > mode preset > weights > default.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from trainer.model.pnasnet import PNASNet5
from trainer.model.weight_files import NORMALIZATIONS, DataConfig, Weights, weight_metadata
from trainer.shared.config import TrainConfig
from trainer.shared.errors import TrainerError, UsageError
from trainer.shared.files import replacing

AUX = "aux."
HEADS = ("last_linear.", "aux.classifier.")


def with_weight_settings(config: TrainConfig, weights: Weights) -> TrainConfig:
    """Return `config` with the weights' padding, image size, normalisation, crop and interpolation where it sets none.

    Raises:
        UsageError: `--normalize` cannot express the weights' normalisation.
    """
    statistics = weights.data.mean, weights.data.std
    normalize = next((name for name, values in NORMALIZATIONS.items() if values == statistics), None)
    if normalize is None:
        raise UsageError(
            f"weights {weights.path}: made for images with mean {weights.data.mean} and deviation {weights.data.std}, "
            "which no --normalize gives"
        )
    settings: dict[str, Any] = {
        "padding": weights.padding,
        "image_size": weights.data.image_size,
        "normalize": normalize,
        "eval_crop": weights.data.crop,
        "interpolation": weights.data.interpolation,
    }
    return config.model_copy(
        update={name: value for name, value in settings.items() if name not in config.model_fields_set}
    )


def load_weights(model: PNASNet5, weights: Weights, *, replace_head: bool = False) -> None:
    """Copy weights into a network of the same scale, padding and classes.

    Tensors named `aux.*` are copied if the network has an auxiliary head of the same shapes. If not, the network's own
    keep their values.

    Args:
        replace_head: skip the classifiers; the network's own, of any number of classes, keep their values.

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
    expected, offered = _without(model.state_dict(), left_out), _without(weights.state_dict, left_out)
    if _shapes(expected, AUX) != _shapes(offered, AUX):
        expected, offered = _without(expected, (AUX,)), _without(offered, (AUX,))
    differing = sorted(name for name, _ in _shapes(expected) ^ _shapes(offered))
    if differing:
        raise UsageError(
            f"weights {weights.path}: do not fit {model.scale.name}: {differing[0]} is missing, unknown or of another "
            "shape; choose the --model that they were made for"
        )
    model.load_state_dict(offered, strict=False)


def describe_weights(model: PNASNet5, config: TrainConfig) -> dict[str, str]:
    """Return what a weight file of this run says about itself: the network, and how the run prepares its images."""
    mean, std = NORMALIZATIONS[config.normalize]
    data = DataConfig(
        mean=mean, std=std, crop=config.eval_crop, interpolation=config.interpolation, image_size=config.image_size
    )
    return weight_metadata(model.scale.name, model.padding, model.num_classes, data)


def write_weights(path: Path, tensors: Mapping[str, Tensor], description: dict[str, str]) -> None:
    """Write tensors on the CPU and their description as safetensors; a reader never sees half of the file.

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


def _without(tensors: Mapping[str, Tensor], prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefixes)}


def _shapes(tensors: Mapping[str, Tensor], prefix: str = "") -> set[tuple[str, torch.Size]]:
    """Return names and shapes of all tensors but the batch counters, which files of old PyTorch versions lack."""
    return {
        (name, tensor.shape)
        for name, tensor in tensors.items()
        if name.startswith(prefix) and not name.endswith("num_batches_tracked")
    }
