"""The settings of a job from their layers, each with its origin.

flag > environment > profile > cluster defaults > mode or hardware preset > default. A job that is continued has two
more layers below the profile: the settings of its earlier attempt, and those with which its run began. One profile,
one environment and one command line hold the launcher's settings and the trainer's; this module gives each its own.
`trainer.shared.config` has the rules of precedence.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from launcher.settings.hardware import PRESETS
from launcher.settings.options import JobOptions
from trainer.shared import variables
from trainer.shared.config import Layer, TrainConfig, resolve_train_config
from trainer.shared.config.layers import DEFAULT_ORIGIN, environment_layer, profile_layer, resolve
from trainer.shared.config.train import is_absent, mode_of

NO_LAYER = Layer("earlier attempt", {})
Defaults = Callable[[str], Layer]
"""Returns the cluster defaults for a mode."""
# Each attempt has its own of these.
_OF_ONE_ATTEMPT = frozenset({"resume", "run_name"})


@dataclass(frozen=True)
class Earlier:
    """What is known of the run that a job continues.

    Attributes:
        given: the settings that the earlier attempt's trainer was told; the next one is told them too.
        begun: the settings with which the run began. The trainer has them from the checkpoint: they are shown only.
        job: the launcher's settings of the earlier attempt.
        overlay: the content of its overlay file, which may have changed since, or be gone.
    """

    given: Layer = NO_LAYER
    begun: Layer = NO_LAYER
    job: Layer = NO_LAYER
    overlay: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """Resolved settings.

    Attributes:
        origins: for each setting, the layer that gave it.
        given: the trainer's settings that a layer above the presets set. The trainer chooses the others itself: they
            can come from weights or a checkpoint, which the launcher does not read.
        overlay: of the attempt that is continued, unless another file is given.
        without_defaults: the same settings without the cluster defaults; None if there are no cluster defaults.
    """

    options: JobOptions
    train: TrainConfig
    origins: Mapping[str, str]
    given: tuple[str, ...]
    overlay: Mapping[str, Any] = field(default_factory=dict)
    without_defaults: "Settings | None" = None

    def is_set(self, name: str) -> bool:
        """Return whether the user, an administrator or an earlier attempt set it, at least in part."""
        origin = self.origins[name]
        return origin != DEFAULT_ORIGIN and (not origin.startswith(("mode ", "hardware ")) or ", " in origin)

    @property
    def changed_origins(self) -> dict[str, str]:
        """The origin of each setting that is no default."""
        return {name: origin for name, origin in self.origins.items() if origin != DEFAULT_ORIGIN}

    def items(self) -> list[tuple[str, Any, str]]:
        """Return (name, value, origin) of every setting, the launcher's first."""
        values = {**dict(self.options), **{name: value for name, value in self.train if name != "run_name"}}
        return [(name, value, self.origins[name]) for name, value in values.items()]


def given_settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the trainer's settings that a recorded job was given, for its next attempt."""
    train: Mapping[str, Any] = record.get("train", {})
    names = record.get("given", train)
    return {name: train[name] for name in names if name in train and name not in _OF_ONE_ATTEMPT}


def resolve_settings(
    flags: Mapping[str, Any],
    profile: str | None,
    environ: Mapping[str, str] = os.environ,
    *,
    earlier: Earlier = Earlier(),
    defaults: Defaults | None = None,
) -> Settings:
    """Resolve the settings of `submit`.

    Args:
        flags: the options that the user typed, by field name.
        profile: a YAML file or the name of a shipped profile; PNAS_PROFILE if None.
        earlier: the run that is continued.
        defaults: the cluster defaults.

    Raises:
        ConfigError: one line that names the setting, its origin and the rule that it breaks.
    """
    without_defaults = None if defaults is None else resolve_settings(flags, profile, environ, earlier=earlier)
    job_flags, train_flags = _split(Layer("flag", flags))
    job_layers = [job_flags, environment_layer(JobOptions, environ)]
    train_layers = [train_flags, environment_layer(TrainConfig, environ)]
    profile = profile or variables.read(variables.PROFILE, environ)
    if profile is not None:
        job_profile, train_profile = _split(profile_layer(profile))
        job_layers.append(job_profile)
        train_layers.append(train_profile)
    job_layers.append(earlier.job)
    train_layers.append(earlier.given)
    if defaults is not None:
        job_defaults, train_defaults = _split(defaults(mode_of(train_layers)))
        job_layers.append(job_defaults)
        train_layers.append(train_defaults)
    options, job_origins = resolve(JobOptions, job_layers)
    given = {name for layer in train_layers for name in layer.values}
    train_layers.append(earlier.begun)
    # The checkpoint's settings are not known yet: the trainer judges rules between settings when it reads them.
    resume = next((layer.values["resume"] for layer in train_layers if "resume" in layer.values), None)
    partial = not is_absent(resume)
    train, train_origins = resolve_train_config(train_layers, partial=partial)
    if options.hardware is not None and train.device != "cpu":
        options, job_origins = _with_preset(options, options.hardware, job_origins)
    return Settings(
        options=options,
        train=train,
        origins={**job_origins, **train_origins},
        given=tuple(name for name in TrainConfig.model_fields if name in given),
        overlay=earlier.overlay,
        without_defaults=without_defaults,
    )


def _with_preset(options: JobOptions, hardware: str, origins: Mapping[str, str]) -> tuple[JobOptions, dict[str, str]]:
    """Take unset options from the preset. Node labels of the user add to the preset's."""
    preset, origin = PRESETS[hardware], f"hardware {hardware}"
    update, origins = dict[str, Any](), dict(origins)
    if origins["resource"] == DEFAULT_ORIGIN:
        update["resource"], origins["resource"] = preset.resource, origin
    user_keys = {text.partition("=")[0] for text in options.node_selector}
    if labels := [f"{key}={value}" for key, value in preset.node_labels.items() if key not in user_keys]:
        update["node_selector"] = (*labels, *options.node_selector)
        origins["node_selector"] = f"{origin}, {origins['node_selector']}" if options.node_selector else origin
    return options.model_copy(update=update), origins


def _split(layer: Layer) -> tuple[Layer, Layer]:
    """Return the launcher's settings and all others, the trainer's."""
    job = {name: value for name, value in layer.values.items() if name in JobOptions.model_fields}
    train = {name: value for name, value in layer.values.items() if name not in job}
    return Layer(layer.origin, job), Layer(layer.origin, train)
