"""Weights go into a network that they fit, or an error says why they do not; a network's weights go to a file.

Loading never guesses: the scale, the classes and the function of the borders must match. The auxiliary head is the one
exception, because evaluation does not use it: it is loaded if file and network have the same one, and skipped if not.

Weights also bring settings along: images must be prepared as they were in their training. Another normalisation or crop
gives a wrong figure without any error. So these settings come from the weights unless the user set them:
flag > environment > profile > mode preset > weights > default.
"""

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from trainer.model.origin import AUX
from trainer.model.pnasnet import LARGE, PNASNet5
from trainer.model.weight_files import IMAGENET_CLASSES, NORMALIZATIONS, DataConfig, Weights, weight_metadata
from trainer.shared.config import Layer, TrainConfig
from trainer.shared.config.layers import resolve
from trainer.shared.errors import TrainerError, UsageError
from trainer.shared.files import replacing
from trainer.shared.text import visible

HEADS = ("last_linear.", "aux.classifier.")
# Images and borders of another origin give a wrong figure without any error.
_DECISIVE = ("padding", "normalize")
# Nothing in the tensors proves these; a user who gives both decisive options knows better.
_INFERRED = ("timm", "cadene")


def with_weight_settings(config: TrainConfig, weights: Weights) -> TrainConfig:
    """Return `config` with the settings that come from the weights, where the user set none.

    They are the model, the padding, the image size, the normalisation, the crop and the interpolation. This is the only
    place where weights change settings.

    Raises:
        UsageError: nothing tells a setting, or `--normalize` cannot express the weights' normalisation; the line names
            the options that decide. A setting of theirs breaks a rule, by itself or together with the user's.
    """
    user_set = config.model_fields_set
    missing = [name for name in _DECISIVE if name not in user_set]
    if weights.source == "unknown" and missing:
        raise UsageError(
            f"weights {weights.path}: nothing tells the borders and pixels that they were trained with "
            f"({weights.evidence}); give {' and '.join(f'--{name}' for name in missing)}: exact and half for timm's "
            "and Cadene's, seed and none for the seed's, your run's own for yours (and its --image-size)"
        )
    if weights.source in _INFERRED and missing == ["normalize"] and config.padding != weights.padding:
        raise UsageError(
            f"weights {weights.path}: --padding {config.padding}, but they look like {weights.source}'s "
            f"({weights.evidence}), trained with {weights.padding}; leave --padding out, or give --normalize too if "
            "another program trained them"
        )
    settings: dict[str, Any] = {"model": weights.model}
    if weights.padding is not None:
        settings["padding"] = weights.padding
    if weights.data is not None:
        settings |= _data_settings(weights.path, weights.data, needs_normalize="normalize" not in user_set)
    brought = {name: value for name, value in settings.items() if name not in user_set}
    # A file can hold any number, and its image size can contradict the user's batch size.
    layers = [
        Layer("flag", {name: getattr(config, name) for name in user_set}),
        Layer(f"weights {weights.path}", brought),
    ]
    return resolve(TrainConfig, layers)[0]


def weight_warnings(config: TrainConfig, weights: Weights, *, user_set: Set[str]) -> list[str]:
    """Return why the network's answers can be wrong: an assumed source, and settings other than in its training.

    Args:
        user_set: the settings that do not come from the weights or a default.
    """
    warnings = []
    # timm and Cadene published one network each.
    published = weights.model == LARGE.name and weights.num_classes == IMAGENET_CLASSES
    if weights.source in _INFERRED and not published and not user_set >= {*_DECISIVE}:
        warnings.append(
            f"the weights are taken for {weights.source}'s, which published no such network: padding "
            f"{config.padding}, normalize {config.normalize}; set both if another program trained them"
        )
    conflicts = weight_conflicts(config, weights)
    if conflicts:
        warnings.append(f"the weights were trained with other settings: {', '.join(conflicts)}")
    return warnings


def weight_conflicts(config: TrainConfig, weights: Weights) -> list[str]:
    """Return the settings by which `config` departs from the weights' training, such as `normalize none (half)`.

    Another image size or crop is a choice. Other borders or pixels are mostly a mistake.
    """
    known: dict[str, str | None] = {"padding": weights.padding}
    if weights.data is not None:
        known["normalize"] = _normalize_name(weights.data)
    return [
        f"{name} {getattr(config, name)} (theirs: {value})"
        for name, value in known.items()
        if value is not None and getattr(config, name) != value
    ]


def load_weights(model: PNASNet5, weights: Weights, *, replace_head: bool = False) -> None:
    """Copy weights into a network of the same scale, padding and classes.

    Tensors named `aux.*` are copied if the network has an auxiliary head of the same shapes. If not, the network's own
    keep their values.

    Args:
        replace_head: skip the classifiers; the network's own, of any number of classes, keep their values.

    Raises:
        UsageError: the weights belong to another scale, padding or number of classes; the network is unchanged.
    """
    if weights.model != model.scale.name:
        raise UsageError(
            f"weights {weights.path}: do not fit {model.scale.name}: they are {weights.model}'s; choose the "
            f"--model that they were made for (--model {weights.model}), or leave it out"
        )
    if weights.padding not in (None, model.padding) and weights.source not in _INFERRED:
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
    if not has_same_aux_head(model, weights):
        expected, offered = _without(expected, (AUX,)), _without(offered, (AUX,))
    fault = _misfit(_shapes(expected), _shapes(offered))
    if fault is not None:
        raise UsageError(f"weights {weights.path}: do not fit {model.scale.name}: {fault}; copy or save the file again")
    model.load_state_dict(offered, strict=False)


def has_same_aux_head(model: PNASNet5, weights: Weights) -> bool:
    """Return whether the network's auxiliary head, but for its classes, has the shapes of the weights' one."""
    own, theirs = (_shapes(_without(tensors, HEADS), AUX) for tensors in (model.state_dict(), weights.state_dict))
    return own == theirs


def describe_weights(model: PNASNet5, config: TrainConfig, classes: Sequence[str]) -> dict[str, str]:
    """Return what a weight file of this run says about itself: network, preparation of images, names of classes."""
    mean, std = NORMALIZATIONS[config.normalize]
    data = DataConfig(
        mean=mean, std=std, crop=config.eval_crop, interpolation=config.interpolation, image_size=config.image_size
    )
    return weight_metadata(model.scale.name, model.padding, model.num_classes, data, classes)


def write_weights(
    path: Path, tensors: Mapping[str, Tensor], description: dict[str, str], *, partial: Path | None = None
) -> None:
    """Write tensors on the CPU and their description as safetensors; a reader never sees half of the file.

    Args:
        partial: the path of the half-written file, on the same file system; a hidden one next to `path` if None.

    Raises:
        TrainerError: the file cannot be written.
    """
    try:
        with replacing(path, partial=partial) as unfinished:
            save_file(dict(tensors), unfinished, description)
    except (OSError, SafetensorError) as error:
        raise TrainerError(
            f"weights {path}: cannot be written ({error}); free space or choose another folder"
        ) from error


def _data_settings(path: Path, data: DataConfig, *, needs_normalize: bool) -> dict[str, Any]:
    settings = {"image_size": data.image_size, "eval_crop": data.crop, "interpolation": data.interpolation}
    normalize = _normalize_name(data)
    if normalize is not None:
        return settings | {"normalize": normalize}
    if needs_normalize:
        raise UsageError(
            f"weights {path}: made for images with mean {data.mean} and deviation {data.std}, which no --normalize "
            "gives; give the nearest --normalize to use them all the same"
        )
    return settings


def _normalize_name(data: DataConfig) -> str | None:
    return next((name for name, values in NORMALIZATIONS.items() if values == (data.mean, data.std)), None)


def _without(tensors: Mapping[str, Tensor], prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefixes)}


def _misfit(expected: Mapping[str, torch.Size], offered: Mapping[str, torch.Size]) -> str | None:
    """Return the first tensor that is missing, unknown or of another shape."""
    for fault, names in {
        "missing": sorted(expected.keys() - offered.keys()),
        "unknown": sorted(offered.keys() - expected.keys()),
        "of another shape": sorted(
            name for name in expected.keys() & offered.keys() if expected[name] != offered[name]
        ),
    }.items():
        if names:
            others = f" (and {len(names) - 1:,} more)" if len(names) > 1 else ""
            return f"{visible(names[0])}{others} is {fault}"
    return None


def _shapes(tensors: Mapping[str, Tensor], prefix: str = "") -> dict[str, torch.Size]:
    """Return the shapes of all tensors but the batch counters, which files of old PyTorch versions lack."""
    return {
        name: tensor.shape
        for name, tensor in tensors.items()
        if name.startswith(prefix) and not name.endswith("num_batches_tracked")
    }
