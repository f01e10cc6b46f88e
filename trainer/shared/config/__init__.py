"""The options of a run: one typed definition, and the layers that its values come from."""

from trainer.shared.config.layers import ConfigError, Layer
from trainer.shared.config.train import (
    EMULATED,
    MODE_PRESETS,
    TrainConfig,
    emulated_machine,
    resolve_train_config,
    user_layers,
)

__all__ = [
    "EMULATED",
    "MODE_PRESETS",
    "ConfigError",
    "Layer",
    "TrainConfig",
    "emulated_machine",
    "resolve_train_config",
    "user_layers",
]
