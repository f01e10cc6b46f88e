"""Cluster defaults: settings that an administrator publishes in a namespace, so that a short command is enough there.

The chart makes the ConfigMap. Flags, environment and profile win over it; it wins over a mode's preset.
"""

from collections.abc import Mapping
from typing import Any

from launcher.kube.api import Api, if_allowed
from launcher.kube.resources import CONFIG_MAPS
from launcher.settings.layers import Defaults
from launcher.settings.options import PLACE, JobOptions
from trainer.shared.config import MODE_PRESETS, ConfigError, Layer, TrainConfig
from trainer.shared.config.layers import by_field_name, parse_yaml

CONFIG_MAP, KEY = "pnas-defaults", "defaults.yaml"
_REMEDY = "ask the administrator to fix it"
_MODES = "modes"
"""The key of settings that count in one mode only."""

NO_DEFAULTS = PLACE | frozenset(
    ("name", "release", "run_name", "overlay", "resume", "backend", "mode", "node_rank", "master_addr")
)
"""Settings that each job has for itself, or that are needed to find the namespace."""


def read_defaults(api: Api) -> Defaults | None:
    """Return the defaults of the namespace; None without a ConfigMap that the user may read.

    Raises:
        ConfigError: the ConfigMap cannot be used; the message names it.
        LauncherError: the cluster does not answer.
    """
    config_map, _ = if_allowed(lambda: api.find(CONFIG_MAPS, CONFIG_MAP))
    if config_map is None:
        return None
    return parse_defaults(str((config_map.get("data") or {}).get(KEY, "")), api.namespace)


def parse_defaults(text: str, namespace: str) -> Defaults:
    """Return the defaults in the text of the ConfigMap.

    Raises:
        ConfigError: the text is not a mapping of settings.
    """
    origin = f"cluster defaults (configmap {CONFIG_MAP} in {namespace})"
    common = by_field_name(parse_yaml(text, place=origin), place=origin)
    mode_texts = by_field_name(common.pop(_MODES, None), place=f"{origin}, {_MODES}")
    unknown = mode_texts.keys() - MODE_PRESETS.keys()
    if unknown:
        raise ConfigError(f"{origin}: no such mode: {', '.join(sorted(unknown))}; {_REMEDY}")
    modes = {mode: by_field_name(part, place=f"{origin}, {_MODES}.{mode}") for mode, part in mode_texts.items()}
    for part in (common, *modes.values()):
        _check_names(part, origin)
    return lambda mode: Layer(origin, {**common, **modes.get(mode, {})})


def _check_names(values: Mapping[str, Any], origin: str) -> None:
    settings = {*JobOptions.model_fields, *TrainConfig.model_fields}
    for name in values:
        if name not in settings:
            raise ConfigError(f"unknown setting `{name}` in {origin}; {_REMEDY}")
        if name in NO_DEFAULTS:
            raise ConfigError(f"{origin}: each job has its own `{name}`, which cannot have a default; {_REMEDY}")
