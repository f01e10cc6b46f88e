"""The settings of a job from their layers, each with its origin.

flag > environment > profile > cluster defaults > mode or hardware preset > default. A job that is continued has two
layers more, below the profile: what its earlier attempt was given, and what its run was begun with. One profile, one
environment and one command line hold the launcher's settings and the trainer's; this module deals each to its owner.
The rules of precedence are `trainer.shared.config`'s.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from launcher.errors import RequestError
from launcher.settings.hardware import PRESETS, labels_beside
from launcher.settings.spec import JobOptions
from trainer.shared.config import Layer, TrainConfig, environment_layer, profile_layer, resolve, resolve_train_config
from trainer.shared.config.train import mode_of

NOTHING = Layer("earlier attempt", {})


@dataclass(frozen=True)
class Earlier:
    """What is known of the run that a job continues."""

    given: Layer
    """The settings that the earlier attempt was given; the next one is given them too."""
    begun: Layer
    """Those that the run was begun with. The trainer has them from the checkpoint: they are shown, not passed on."""
    job: Layer = NOTHING
    """The launcher's own settings of the earlier attempt."""
    overlay: Mapping[str, Any] = field(default_factory=dict)
    """What its overlay said; the file may have changed since, or be gone."""


@dataclass(frozen=True)
class Settings:
    """What was resolved.

    Attributes:
        origins: for each setting, the layer that gave it.
        given: the trainer's settings that somebody set. The trainer chooses the rest by itself, for it may come from
            weights or a checkpoint, which the launcher does not read.
        overlay: of the attempt that is continued, unless another file is given.
    """

    options: JobOptions
    train: TrainConfig
    origins: Mapping[str, str]
    given: tuple[str, ...]
    overlay: Mapping[str, Any] = field(default_factory=dict)

    def items(self) -> list[tuple[str, Any, str]]:
        """(name, value, origin) of every setting, the launcher's first."""
        values = {**dict(self.options), **{name: value for name, value in self.train if name != "run_name"}}
        return [(name, value, self.origins[name]) for name, value in values.items()]


def resolve_settings(
    flags: Mapping[str, Any],
    profile: str | None,
    environ: Mapping[str, str] = os.environ,
    *,
    earlier: Earlier | None = None,
    defaults: Callable[[str], Layer] | None = None,
) -> Settings:
    """Resolve what `submit` was given.

    Args:
        flags: the options given on the command line, by field name; only those given.
        profile: a YAML file or the name of a shipped profile.
        earlier: the run that is continued.
        defaults: those of the cluster, for a mode.

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
    if earlier is not None:
        job_layers.append(earlier.job)
        train_layers.append(earlier.given)
    if defaults is not None:
        shared = defaults(mode_of(train_layers))
        job_layers.append(Layer(shared.origin, _only(shared.values, JobOptions.model_fields)))
        train_layers.append(Layer(shared.origin, _without(shared.values, JobOptions.model_fields)))
    options, job_origins = resolve(JobOptions, job_layers)
    set_by_somebody = {name for layer in train_layers for name in layer.values}
    if earlier is not None:
        train_layers.append(earlier.begun)
    # What a checkpoint brings is not known yet: rules between settings are the trainer's to judge then.
    partial = any(layer.values.get("resume") not in (None, "none") for layer in train_layers)
    train, train_origins = resolve_train_config(train_layers, partial=partial)
    if options.hardware is not None and train.device != "cpu":
        options, job_origins = _over_preset(options, options.hardware, job_origins)
    passed_on = tuple(name for name in TrainConfig.model_fields if name in set_by_somebody)
    overlay = {} if earlier is None else earlier.overlay
    return Settings(options, train, {**job_origins, **train_origins}, passed_on, overlay)


def _over_preset(options: JobOptions, hardware: str, origins: Mapping[str, str]) -> tuple[JobOptions, dict[str, str]]:
    """What nobody set is the preset's. A label of the nodes that somebody chose does not take the others away."""
    layer, update, said = f"hardware {hardware}", dict[str, Any](), dict[str, str]()
    if origins["resource"] == "default":
        update["resource"], said["resource"] = PRESETS[hardware].resource, layer
    if labels := labels_beside(hardware, options.node_selector):
        update["node_selector"] = (*labels, *options.node_selector)
        said["node_selector"] = f"{layer}, {origins['node_selector']}" if options.node_selector else layer
    return options.model_copy(update=update), {**origins, **said}


def refuse_queue(settings: Settings) -> None:
    """A queue that somebody asked for is not left out without a word; one of the cluster's defaults is for Volcano.

    Raises:
        RequestError: the job is to be a Kubernetes Job, which has none.
    """
    origin = settings.origins["queue"]
    if origin in ("flag", "environment") or origin.startswith("profile "):
        raise RequestError(
            f"--queue {settings.options.queue}: Kubernetes Jobs have no queue; leave it out, or use --backend volcano"
        )


def _only(values: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in fields}


def _without(values: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in fields}
