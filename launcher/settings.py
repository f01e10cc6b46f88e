"""The settings of a job from their layers, each with its origin: flag > environment > profile > mode preset > default.

One profile, one environment and one command line hold the launcher's settings and the trainer's; this module deals
each to its owner. The rules of precedence are `trainer.config`'s.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launcher.spec import JobOptions
from trainer.config import Layer, TrainConfig, environment_layer, mode_layer, profile_layer, resolve


@dataclass(frozen=True)
class Settings:
    """What was resolved. `origins` names, for each setting, the layer that gave it."""

    options: JobOptions
    train: TrainConfig
    origins: Mapping[str, str]

    def items(self) -> list[tuple[str, Any, str]]:
        """(name, value, origin) of every setting, the launcher's first."""
        values = {**dict(self.options), **{name: value for name, value in self.train if name != "run_name"}}
        return [(name, value, self.origins[name]) for name, value in values.items()]


def resolve_settings(
    flags: Mapping[str, Any], profile: str | None, environ: Mapping[str, str] = os.environ
) -> Settings:
    """Resolve what `submit` was given.

    Args:
        flags: the options given on the command line, by field name; only those given.
        profile: a YAML file or the name of a shipped profile.

    Raises:
        ConfigError: one line that names the setting, where it came from and the rule it breaks.
    """
    given = [Layer("flag", flags)]
    if profile is not None:
        given.append(profile_layer(profile))
    train_layers = [Layer(layer.origin, _without(layer.values, JobOptions.model_fields)) for layer in given]
    job_layers = [Layer(layer.origin, _only(layer.values, JobOptions.model_fields)) for layer in given]
    train_layers.insert(1, environment_layer(TrainConfig, environ))
    job_layers.insert(1, environment_layer(JobOptions, environ))
    options, job_origins = resolve(JobOptions, job_layers)
    train, train_origins = resolve(TrainConfig, [*train_layers, mode_layer(train_layers)])
    return Settings(options, train, {**job_origins, **train_origins})


def _only(values: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in fields}


def _without(values: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in fields}
