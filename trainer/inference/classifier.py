"""A trained network with the preparation of its images: from decoded images to the probabilities of classes."""

import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.data.augment import EvalTransform, device_transform
from trainer.data.bad_images import BadImageError
from trainer.data.decode import decode_image
from trainer.model.folding import folded
from trainer.model.pnasnet import PNASNet5, build_model
from trainer.model.weight_files import NORMALIZATIONS, import_weights
from trainer.model.weights import load_weights, weight_warnings, with_weight_settings
from trainer.shared.config import Layer, TrainConfig, resolve_train_config
from trainer.shared.container import usable_processors
from trainer.shared.errors import UsageError
from trainer.shared.files import read_file, reading

BEST_WEIGHTS = Path("checkpoints/best.safetensors")


@dataclass(frozen=True)
class Classifier:
    """A network for evaluation on the CPU.

    Attributes:
        network: with its weights, in evaluation mode.
        config: how its images are prepared.
        classes: names of the classes, in the order of the network's outputs.
        warnings: why its answers can be wrong.
    """

    network: PNASNet5
    config: TrainConfig
    classes: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    @cached_property
    def _folded(self) -> PNASNet5:
        return folded(self.network).to(memory_format=torch.channels_last)

    def crop(self, image: Tensor) -> Tensor:
        """Return the part of a decoded image that the network sees, in its size: uint8 (3, side, side)."""
        return EvalTransform(self.config)(image)

    def read_crop(self, path: Path) -> Tensor | str:
        """Return the crop of an image file, or why it cannot be read. A decoded image, up to 256 MiB, is not kept."""
        with suppress(OSError):  # `decode_image` reports it
            if not stat.S_ISREG(path.stat().st_mode):
                return "not a file"
        try:
            return self.crop(decode_image(path))
        except BadImageError as error:
            return error.reason

    def probabilities(self, images: Sequence[Tensor]) -> Tensor:
        """Return float32 (N, classes) for decoded images, each uint8 (3, H, W) of any size."""
        return self.crop_probabilities([self.crop(image) for image in images])

    @torch.no_grad()
    def crop_probabilities(self, crops: Sequence[Tensor]) -> Tensor:
        """Return float32 (N, classes) for the results of `crop`."""
        pixels = torch.stack(list(crops))
        mean, std = NORMALIZATIONS[self.config.normalize]
        inputs = device_transform(pixels, mean=mean, std=std, channels_last=True)
        logits: Tensor = self._folded(inputs)
        return logits.softmax(1)


def limit_threads() -> None:
    """Let torch compute with no more threads than the container's quota has room for."""
    torch.set_num_threads(min(torch.get_num_threads(), usable_processors()))


def load_classifier(weights: Path, settings: Mapping[str, Any], class_names: Path | None = None) -> Classifier:
    """Return the network of a weight file, or of the best weights in a run's folder.

    Args:
        settings: options of the user's, which the file's own do not replace.
        class_names: a file with one name per line, for weights that do not name their classes.

    Raises:
        UsageError: the weights or the names cannot be read, do not fit each other, or do not say how their images are
            prepared.
    """
    file = weights / BEST_WEIGHTS if weights.is_dir() else weights
    loaded = import_weights(file)
    options = Layer("flag", {"mode": "eval", "weights": file, "aux": "none", **settings})
    config = with_weight_settings(resolve_train_config([options])[0], loaded)
    network = build_model(config, loaded.num_classes)
    load_weights(network, loaded)
    names = loaded.classes if class_names is None else _read_names(class_names)
    if names is None:
        names = tuple(f"class {number}" for number in range(loaded.num_classes))
    if len(names) != loaded.num_classes:
        raise UsageError(
            f"--class-names {class_names}: {len(names):,} names, but {file} has {loaded.num_classes:,} classes; give "
            "one name per line, in the order of the classes"
        )
    warnings = weight_warnings(config, loaded, user_set=settings.keys())
    return Classifier(network.eval(), config, names, tuple(warnings))


def _read_names(path: Path) -> tuple[str, ...]:
    with reading(path):
        text = read_file(path).decode("utf-8-sig", "surrogateescape")
    return tuple(line.strip() for line in text.splitlines() if line.strip())
