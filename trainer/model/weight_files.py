"""Weight files of four origins read into one value: Cadene's, timm's, the seed's checkpoints, and our own.

Which function of the borders (`padding`) weights were trained with, and how images were prepared for them, is part of
what they are. Our own files say it; for published files it is known from where they come from. Nothing in a file is
ever executed: pickled files are read as tensors only.
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

FORMAT = "pnas"
# torch.save writes a zip archive; before 1.6 it wrote bare pickles, of protocol 2.
PICKLED = (b"PK", b"\x80")
FORMAT_VERSION = "1"
WHAT_IS_READ = "expected weights of ours (.safetensors), timm's or Cadene's, or a checkpoint of the seed"

Rgb = tuple[float, float, float]


@dataclass(frozen=True)
class DataConfig:
    """How images are prepared for a network.

    Attributes:
        mean: subtracted from RGB in [0, 1].
        std: what the difference is divided by.
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
    """Tensors by parameter name, and what they are good for.

    Attributes:
        path: the file they come from.
        source: who wrote the file.
        state_dict: parameters and batch statistics, named as in `PNASNet5`.
        padding: the function of the borders that they were trained with.
        num_classes: outputs of their classifier.
        data: how images were prepared for them.
    """

    path: Path
    source: Literal["cadene", "pnas", "seed", "timm"]
    state_dict: Mapping[str, Tensor]
    padding: Padding
    num_classes: int
    data: DataConfig


def import_weights(path: Path, *, keep_background: bool = False) -> Weights:
    """Read a weight file.

    Args:
        path: our `.safetensors`, timm's `.safetensors` or `.pth`, Cadene's `.pth`, the seed's `checkpoint.pth.tar`.
        keep_background: keep row 0 of a published 1,001-class file, TensorFlow's background class; without it the
            result has the 1,000 classes of ImageNet.

    Raises:
        UsageError: the file cannot be read, is damaged, or holds something else.
    """
    tensors, metadata = _read_safetensors(path) if _is_safetensors(path) else _read_pickle(path)
    if metadata.get("format") == FORMAT:
        return _own(path, tensors, metadata)
    return _published(path, tensors, keep_background)


def metadata_of(model: str, padding: Padding, num_classes: int, data: DataConfig) -> dict[str, str]:
    """What our own files say about themselves, as safetensors stores it."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model": model,
        "padding": padding,
        "num_classes": str(num_classes),
        "data": json.dumps(asdict(data)),
    }


def _is_safetensors(path: Path) -> bool:
    """By content: a safetensors file starts with the length of a JSON object, then the object."""
    try:
        with path.open("rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError as error:
        raise UsageError(f"weights {path}: {(error.strerror or str(error)).lower()}; give a readable file") from error


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118  # not a mapping
    except (SafetensorError, OSError) as error:
        raise UsageError(
            f"weights {path}: damaged safetensors file ({_line(error)}); copy or download it again"
        ) from error


def _read_pickle(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with path.open("rb") as file:
        if not file.read(2).startswith(PICKLED):
            raise UsageError(f"weights {path}: not a weight file; {WHAT_IS_READ}")
    try:
        with warnings.catch_warnings():
            # What is wrong with a file is said once, below.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"weights {path}: not a file of plain tensors, and code in files is never run; {WHAT_IS_READ}"
        ) from error
    except (EOFError, OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(f"weights {path}: damaged or not a weight file ({_line(error)}); {WHAT_IS_READ}") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UsageError(f"weights {path}: holds no table of tensors; {WHAT_IS_READ}")
    return {str(name): value for name, value in content.items()}, {}


def _own(path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> Weights:
    if metadata.get("format_version") != FORMAT_VERSION:
        raise UsageError(
            f"weights {path}: format version {metadata.get('format_version')}, but this program reads "
            f"{FORMAT_VERSION}; use the version of the program that wrote it"
        )
    try:
        padding, data = metadata["padding"], json.loads(metadata["data"])
        data |= {"mean": tuple(data["mean"]), "std": tuple(data["std"])}
        known = next(name for name in PADDINGS if name == padding)
        return Weights(path, "pnas", tensors, known, int(metadata["num_classes"]), DataConfig(**data))
    except (KeyError, StopIteration, TypeError, ValueError) as error:
        raise UsageError(
            f"weights {path}: its description is damaged ({_line(error)}); write the file again"
        ) from error


def _published(path: Path, tensors: dict[str, Tensor], keep_background: bool) -> Weights:
    from_seed = any(name.startswith(("module.", "aux.")) for name in tensors)
    tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    head = tensors.get("last_linear.weight")
    if head is None or "cell_stem_0.conv_1x1.conv.weight" not in tensors:
        some = ", ".join(list(tensors)[:2]) or "nothing"
        raise UsageError(f"weights {path}: not a PNASNet-5 (it holds {some} ...); {WHAT_IS_READ}")
    classes = len(head)
    if from_seed:
        return Weights(path, "seed", tensors, "seed", classes, SEED_DATA)
    if classes != 1001:
        return Weights(path, "timm", tensors, "exact", classes, TIMM_DATA)
    if not keep_background:
        tensors |= {f"last_linear.{kind}": tensors[f"last_linear.{kind}"][1:] for kind in ("weight", "bias")}
        classes -= 1
    return Weights(path, "cadene", tensors, "exact", classes, CADENE_DATA)


def _line(error: Exception) -> str:
    """The first line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
