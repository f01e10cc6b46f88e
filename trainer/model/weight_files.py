"""Weight files of four origins read into one value: Cadene's, timm's, the seed's checkpoints, and our own.

Weights are useless without the function of the borders (`padding`) that they were trained with, and the preparation of
their images. Our own files store both; for published files the origin tells. No code in a file is ever executed:
pickled files are read as tensors only.
"""

import json
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trainer.model.layers import PADDINGS, Padding
from trainer.shared.errors import UsageError

WEIGHTS_FORMAT = "pnas"
WEIGHTS_VERSION = "1"
# torch.save writes a zip archive; before 1.6 it wrote bare pickles, of protocol 2.
PICKLED = (b"PK", b"\x80")
READABLE_FILES = "expected weights of ours (.safetensors), timm's or Cadene's, or a checkpoint of the seed"

Rgb = tuple[float, float, float]

# `--normalize`: mean and deviation of each channel of an image in [0, 1].
NORMALIZATIONS: dict[str, tuple[Rgb, Rgb]] = {
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@dataclass(frozen=True)
class DataConfig:
    """How images are prepared for a network.

    Attributes:
        mean: subtracted from RGB in [0, 1].
        std: divides the difference.
        crop: share of the resized side that evaluation crops.
        interpolation: resize filter.
        image_size: side of the square input in pixels.
    """

    mean: Rgb = (0.5, 0.5, 0.5)
    std: Rgb = (0.5, 0.5, 0.5)
    crop: float = 0.875
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    image_size: int = 331


# timm, pnasnet5large.tf_in1k: 82.814 top-1 on ImageNet with these.
TIMM_DATA = DataConfig(crop=0.911, interpolation="bicubic")
# Cadene, pretrained-models.pytorch: pretrained_settings of pnasnet5large, utils.TransformImage: 82.736 top-1.
CADENE_DATA = DataConfig(crop=0.875, interpolation="bilinear")
# Ascend ModelZoo, PnasNet5Large/imagenet_fast.py: ToTensor without Normalize; 378 px resized, 331 cropped.
SEED_DATA = DataConfig(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@dataclass(frozen=True)
class Weights:
    """Tensors by parameter name, and the conditions under which they are right.

    Attributes:
        path: the file they come from.
        state_dict: parameters and batch statistics, named as in `PNASNet5`.
        padding: the function of the borders that they were trained with.
        num_classes: outputs of their classifier.
        data: how images were prepared for them.
    """

    path: Path
    state_dict: Mapping[str, Tensor]
    padding: Padding
    num_classes: int
    data: DataConfig


def import_weights(path: Path) -> Weights:
    """Read a weight file.

    Row 0 of a published classifier of 1,001 classes, TensorFlow's background class, is dropped: the result has the
    1,000 classes of ImageNet.

    Args:
        path: our `.safetensors`, timm's `.safetensors` or `.pth`, Cadene's `.pth`, the seed's `checkpoint.pth.tar`.

    Raises:
        UsageError: the file cannot be read, is damaged, or is not a weight file.
    """
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise UsageError(f"weights {path}: {(error.strerror or str(error)).lower()}; give a readable file") from error
    # The content decides: a safetensors file starts with the length of a JSON object, then the object.
    tensors, metadata = _read_safetensors(path) if head[8:] == b"{" else _read_pickle(path, head)
    if metadata.get("format") == WEIGHTS_FORMAT:
        return _own(path, tensors, metadata)
    return _published(path, tensors)


def weight_metadata(model: str, padding: Padding, num_classes: int, data: DataConfig) -> dict[str, str]:
    """Return what our own files say about themselves, as safetensors stores it."""
    return {
        "format": WEIGHTS_FORMAT,
        "format_version": WEIGHTS_VERSION,
        "model": model,
        "padding": padding,
        "num_classes": str(num_classes),
        "data": json.dumps(asdict(data)),
    }


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118  # not a mapping
    except (SafetensorError, OSError) as error:
        raise UsageError(
            f"weights {path}: damaged safetensors file ({_line(error)}); copy or download it again"
        ) from error


def _read_pickle(path: Path, head: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not head.startswith(PICKLED):
        raise UsageError(f"weights {path}: not a weight file; {READABLE_FILES}")
    try:
        with warnings.catch_warnings():
            # The errors below report a fault of the file once.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"weights {path}: not a file of plain tensors, and code in files is never run; {READABLE_FILES}"
        ) from error
    except (EOFError, OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(f"weights {path}: damaged or not a weight file ({_line(error)}); {READABLE_FILES}") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UsageError(f"weights {path}: holds no table of tensors; {READABLE_FILES}")
    return {str(name): value for name, value in content.items()}, {}


def _own(path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> Weights:
    if metadata.get("format_version") != WEIGHTS_VERSION:
        raise UsageError(
            f"weights {path}: format version {metadata.get('format_version')}, but this program reads "
            f"{WEIGHTS_VERSION}; use the version of the program that wrote it"
        )
    try:
        padding, data = metadata["padding"], json.loads(metadata["data"])
        data |= {"mean": tuple(data["mean"]), "std": tuple(data["std"])}
        valid_padding = next(name for name in PADDINGS if name == padding)
        return Weights(path, tensors, valid_padding, int(metadata["num_classes"]), DataConfig(**data))
    except (KeyError, StopIteration, TypeError, ValueError) as error:
        raise UsageError(
            f"weights {path}: its description is damaged ({_line(error)}); write the file again"
        ) from error


def _published(path: Path, tensors: dict[str, Tensor]) -> Weights:
    from_seed = any(name.startswith(("module.", "aux.")) for name in tensors)
    tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    head = tensors.get("last_linear.weight")
    if head is None or "cell_stem_0.conv_1x1.conv.weight" not in tensors:
        some = ", ".join(list(tensors)[:2]) or "nothing"
        raise UsageError(f"weights {path}: not a PNASNet-5 (it holds {some} ...); {READABLE_FILES}")
    classes = len(head)
    if from_seed:
        return Weights(path, tensors, "seed", classes, SEED_DATA)
    if classes != 1001:
        return Weights(path, tensors, "exact", classes, TIMM_DATA)
    tensors |= {f"last_linear.{kind}": tensors[f"last_linear.{kind}"][1:] for kind in ("weight", "bias")}
    return Weights(path, tensors, "exact", classes - 1, CADENE_DATA)


def _line(error: Exception) -> str:
    """Return the first line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
