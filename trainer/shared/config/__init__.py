"""What a run is told to do: one typed definition, and the layers its values come from.

This package is the only part of the trainer that the launcher may import. It imports neither torch nor
kubernetes, so that a command line answers at once.
"""

from trainer.shared.config.emulated import EMULATED, emulated_machine
from trainer.shared.config.layers import ConfigError, Layer, environment_layer, profile_layer, resolve
from trainer.shared.config.train import (
    MODE_PRESETS,
    TrainConfig,
    mode_layer,
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
    "environment_layer",
    "mode_layer",
    "profile_layer",
    "resolve",
    "resolve_train_config",
    "user_layers",
]
