"""The options and the start of the commands that use trained weights, `predict` and `export`."""

import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from trainer.devices.runtime_env import openmp_threads
from trainer.shared.text import visible

if TYPE_CHECKING:
    from trainer.inference.classifier import Classifier

WeightsPath = Annotated[Path, Parameter(help="A weight file, or a run's folder, whose best weights are used.")]
ClassNames = Annotated[
    Path | None,
    Parameter(help="File with one name per line, for weights that do not name their classes.", show_default=False),
]


@Parameter(name="*", group="Images (if the weights do not say how to prepare them)", show_default=False)
@dataclass(frozen=True)
class ImagePreparation:
    """The preparation of images; an option that is not set comes from the weights. `TrainConfig` reads the texts."""

    padding: Literal["exact", "seed"] | None = None
    normalize: Literal["none", "half", "imagenet"] | None = None
    image_size: str | None = None
    eval_crop: str | None = None
    interpolation: Literal["bilinear", "bicubic"] | None = None

    def settings(self) -> dict[str, Any]:
        """Return the options that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}


FROM_WEIGHTS = ImagePreparation()
"""All of the preparation comes from the weights."""


def open_classifier(weights: Path, preparation: ImagePreparation, class_names: Path | None) -> "Classifier":
    """Return the network of a weight file or a run's folder, and print why its answers can be wrong.

    Raises:
        UsageError: the weights, the names or OMP_NUM_THREADS cannot be used.
    """
    threads = openmp_threads(os.environ)  # before torch is there, whose OpenMP only warns of a wrong value
    from trainer.inference.classifier import limit_threads, load_classifier  # noqa: PLC0415  # torch, slow for --help

    if threads is None:
        limit_threads()
    classifier = load_classifier(weights, preparation.settings(), class_names)
    for warning in classifier.warnings:
        print(visible(f"warning: {warning}"), file=sys.stderr)
    return classifier
