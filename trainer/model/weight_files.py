"""Weight files of four origins read into one value: Cadene's, timm's, the seed's checkpoints, and our own.

Weights are useless without the function of the borders (`padding`) that they were trained with, the preparation of
their images, and the order of their classes. Our own files store them; for published files the origin tells, and where
nothing tells the origin, the value says so. No code in a file is ever executed.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trainer.model.layers import PADDINGS, Padding
from trainer.model.origin import (
    CLASSIFIER,
    Origin,
    TensorTable,
    find_origin,
    find_tables,
    preferred,
    scale_of,
)
from trainer.model.pickles import READABLE_FILES, Blank, one_line, read_pickle
from trainer.shared.errors import UsageError
from trainer.shared.files import NOT_REGULAR, utf8_name
from trainer.shared.runs import CHECKPOINT_FORMAT
from trainer.shared.text import visible

WEIGHTS_FORMAT = "pnas"
WEIGHTS_VERSION = "1"
IMAGENET_CLASSES = 1000
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
_CONDITIONS: dict[Origin, tuple[Padding | None, DataConfig | None]] = {
    "timm": ("exact", TIMM_DATA),
    "cadene": ("exact", CADENE_DATA),
    "seed": ("seed", SEED_DATA),
    "unknown": (None, None),
}


@dataclass(frozen=True)
class Weights:
    """Tensors by parameter name, and the conditions under which they are right.

    Attributes:
        path: the file they come from.
        state_dict: parameters and batch statistics, named as in `PNASNet5`.
        source: the program that trained them, or unknown.
        evidence: what tells the source, or why nothing does.
        model: the `--model` that they fit.
        padding: the function of the borders that they were trained with; None if unknown.
        data: how images were prepared for them; None if unknown.
        classes: the names of their classes, in the order of the classifier's rows. Published files do not name them:
            ImageNet's if there are 1,000, else None, as for files of earlier versions.
    """

    path: Path
    state_dict: Mapping[str, Tensor]
    source: Origin
    evidence: str
    model: str
    padding: Padding | None
    data: DataConfig | None
    classes: tuple[str, ...] | None = None

    @property
    def num_classes(self) -> int:
        """Outputs of their classifier."""
        return len(self.state_dict[CLASSIFIER])


def import_weights(path: Path) -> Weights:
    """Read a weight file.

    Row 0 of a published classifier of 1,001 classes, TensorFlow's background class, is dropped: the result has the
    1,000 classes of ImageNet.

    Args:
        path: our `.safetensors`, timm's `.safetensors` or `.pth`, Cadene's `.pth`, the seed's `checkpoint.pth.tar`; the
            content decides, not the name. The tensors can stand in any wrapper and under any prefix.

    Raises:
        UsageError: the file cannot be read, is damaged, or does not hold the weights of one PNASNet-5.
    """
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UsageError(f"weights {path}: {NOT_REGULAR}; give a file")
        with path.open("rb") as file:
            head = file.read(9)
        # A safetensors file starts with the length of a JSON object, then the object.
        content, metadata = _read_safetensors(path) if head[8:] == b"{" else (read_pickle(path), {})
    except OSError as error:
        raise UsageError(f"weights {path}: {(error.strerror or str(error)).lower()}; give a readable file") from error
    if metadata.get("format") == CHECKPOINT_FORMAT:
        raise UsageError(
            f"weights {path}: a training state; continue it with --resume, or give the best.safetensors of its run"
        )
    table = _only_table(path, content)
    tensors = _usable_tensors(path, table)
    model = scale_of(tensors)
    if model is None:
        raise UsageError(f"weights {path}: a PNASNet-5 of a size that no --model has; {READABLE_FILES}")
    if metadata.get("format") == WEIGHTS_FORMAT:
        return _own(path, tensors, metadata, model)
    return _published(path, tensors, table, model)


def weight_metadata(
    model: str, padding: Padding, num_classes: int, data: DataConfig, classes: Sequence[str] | None = None
) -> dict[str, str]:
    """Return what our own files say about themselves, as safetensors stores it."""
    return {
        "format": WEIGHTS_FORMAT,
        "format_version": WEIGHTS_VERSION,
        "model": model,
        "padding": padding,
        "num_classes": str(num_classes),
        "data": json.dumps(asdict(data)),
        **({} if classes is None else {"classes": json.dumps(list(classes))}),
    }


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with utf8_name(path) as name, safe_open(name, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118  # not a mapping
    except (SafetensorError, OSError) as error:
        raise UsageError(
            f"weights {path}: damaged safetensors file ({one_line(error)}); copy or download it again"
        ) from error


def _only_table(path: Path, content: object) -> TensorTable:
    tables = find_tables(content)
    table = preferred(tables)
    if table is not None:
        return table
    if tables:
        places = ", ".join(table.place or "the file's own names" for table in tables[:5])
        raise UsageError(f"weights {path}: holds {len(tables)} networks ({places}); save one of them by itself")
    names = list(content)[:2] if isinstance(content, Mapping) else [type(content).__name__]
    some = visible(", ".join(map(str, names))) or "nothing"
    raise UsageError(f"weights {path}: not a PNASNet-5 (it holds {some} ...); {READABLE_FILES}")


def _usable_tensors(path: Path, table: TensorTable) -> dict[str, Tensor]:
    """Return the table's tensors, which are all plain and finite.

    Raises:
        UsageError: one is not, or the network's ends are missing.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in table.tensors.items():
        fault = _tensor_fault(name, tensor)
        if fault is not None:
            raise UsageError(f"weights {path}: {visible(name)} {fault}; {READABLE_FILES}")
        assert isinstance(tensor, Tensor)  # it has no fault
        tensors[name] = tensor
    for name, dimensions in (("conv_0.conv.weight", 4), (CLASSIFIER, 2), ("last_linear.bias", 1)):
        if name not in tensors or tensors[name].ndim != dimensions or not tensors[name].numel():
            raise UsageError(f"weights {path}: not a whole PNASNet-5 ({name} is missing or empty); {READABLE_FILES}")
    return tensors


def _tensor_fault(name: str, tensor: object) -> str | None:
    if isinstance(tensor, Blank):
        return "is an array or object of another package; save it with torch.from_numpy(array)"
    if not isinstance(tensor, Tensor):
        return f"is no tensor but a {type(tensor).__name__}"
    if name.endswith("num_batches_tracked"):
        return "is a list, not the counter of a batch norm" if tensor.ndim else None
    return _form_fault(tensor) or _values_fault(tensor)


def _form_fault(tensor: Tensor) -> str | None:
    if tensor.is_nested or tensor.layout is not torch.strided:
        form, advice = ("nested", "to_padded_tensor(0)") if tensor.is_nested else ("sparse", "to_dense()")
        return f"is a {form} tensor: save the file again with tensor.{advice} of each {form} one"
    if not tensor.is_floating_point():
        return f"has values of type {str(tensor.dtype).removeprefix('torch.')}, not plain numbers with a fraction"
    return None


def _values_fault(tensor: Tensor) -> str | None:
    if tensor.device.type != "cpu" or tensor.untyped_storage().nbytes() < tensor.numel() * tensor.itemsize:
        return "has fewer values in the file than its shape says"
    if not bool(torch.isfinite(tensor.float()).all()):
        return "has values that are not finite: its training diverged, or the file is damaged"
    return None


def _own(path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, str], model: str) -> Weights:
    if metadata.get("format_version") != WEIGHTS_VERSION:
        raise UsageError(
            f"weights {path}: format version {metadata.get('format_version')}, but this program reads "
            f"{WEIGHTS_VERSION}; use the version of the program that wrote it"
        )
    try:
        return _described(path, tensors, metadata, model)
    except (KeyError, RecursionError, StopIteration, TypeError, ValueError) as error:
        raise UsageError(
            f"weights {path}: its description is damaged ({one_line(error)}); write the file again"
        ) from error


def _described(path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, str], model: str) -> Weights:
    padding = next(name for name in PADDINGS if name == metadata["padding"])
    values = json.loads(metadata["data"])
    data = TypeAdapter(DataConfig).validate_python({field.name: values[field.name] for field in fields(DataConfig)})
    classes = tuple(map(str, json.loads(metadata["classes"]))) if "classes" in metadata else None
    rows = len(tensors[CLASSIFIER])
    if metadata["model"] != model or {int(metadata["num_classes"]), len(set(classes or range(rows)))} != {rows}:
        raise ValueError("it does not fit its tensors")
    return Weights(path, tensors, "pnas", "its description", model, padding, data, classes)


def _published(path: Path, tensors: dict[str, Tensor], table: TensorTable, model: str) -> Weights:
    origin, evidence = find_origin(tensors, table)
    padding, data = _CONDITIONS[origin]
    if origin == "cadene":
        tensors |= {f"last_linear.{kind}": tensors[f"last_linear.{kind}"][1:] for kind in ("weight", "bias")}
    if table.place:
        evidence = f"{evidence}; in {table.place}"
    classes = _imagenet_classes() if len(tensors[CLASSIFIER]) == IMAGENET_CLASSES else None
    return Weights(path, tensors, origin, evidence, model, padding, data, classes)


def _imagenet_classes() -> tuple[str, ...]:
    """Return the class folders of ILSVRC2012 in sorted order, which all programs train on as 0 to 999."""
    return tuple(Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="ascii").split())
