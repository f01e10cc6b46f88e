"""What weights bring along: they are evaluated, or trained on, with the images prepared as they were made for.

Weights scored with another normalisation or crop give a figure that is wrong without any error. So these settings come
from the weights unless the user set them: flag > environment > profile > mode preset > weights > default.
"""

from typing import Any

from trainer.data.augment import NORMALIZATIONS
from trainer.model import DataConfig, Weights
from trainer.shared.config import TrainConfig
from trainer.shared.errors import UsageError


def with_settings_of(config: TrainConfig, weights: Weights) -> TrainConfig:
    """`config`, with padding, image size, normalisation, crop and interpolation of the weights where it sets none.

    Raises:
        UsageError: the weights want a normalisation that `--normalize` cannot express.
    """
    brought: dict[str, Any] = {
        "padding": weights.padding,
        "image_size": weights.data.image_size,
        "normalize": _normalization(weights),
        "eval_crop": weights.data.crop,
        "interpolation": weights.data.interpolation,
    }
    return config.model_copy(
        update={name: value for name, value in brought.items() if name not in config.model_fields_set}
    )


def data_config(config: TrainConfig) -> DataConfig:
    """How a run prepares its images, to be kept with its weights."""
    mean, std = NORMALIZATIONS[config.normalize]
    return DataConfig(
        mean=mean, std=std, crop=config.eval_crop, interpolation=config.interpolation, image_size=config.image_size
    )


def _normalization(weights: Weights) -> str:
    for name, statistics in NORMALIZATIONS.items():
        if statistics == (weights.data.mean, weights.data.std):
            return name
    raise UsageError(
        f"weights {weights.path}: made for images with mean {weights.data.mean} and deviation {weights.data.std}, "
        "which no --normalize gives"
    )
