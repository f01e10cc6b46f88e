"""Cluster defaults: settings that an administrator publishes in a namespace, so that a short command is enough there.

The chart makes the ConfigMap. What it says counts below flags, environment and profile, and above a mode's preset.
"""

from collections.abc import Mapping
from typing import Any

from launcher.kube.api import Api, ApiError
from launcher.kube.resources import CONFIG_MAPS
from launcher.settings.options import PLACE
from launcher.settings.spec import JobOptions
from trainer.shared.config import MODE_PRESETS, ConfigError, Layer, TrainConfig
from trainer.shared.config.layers import from_yaml, named

CONFIG_MAP, KEY = "pnas-defaults", "defaults.yaml"
_MODES = "modes"
"""The key below which settings stand that count in one mode only."""

NO_DEFAULTS = PLACE | {"name", "run_name", "overlay", "resume", "backend", "mode", "node_rank", "master_addr"}
"""Each job's own, or known before the namespace is."""


def read_defaults(api: Api) -> "Defaults | None":
    """Those of the namespace; None if there are none, or they are hidden from us.

    Raises:
        ConfigError: the ConfigMap cannot be used; the message names it.
        LauncherError: the cluster gives no answer.
    """
    try:
        found = api.find(CONFIG_MAPS, CONFIG_MAP)
    except ApiError as error:
        if error.status == 403:
            return None
        raise
    if found is None:
        return None
    return Defaults.parse(str((found.get("data") or {}).get(KEY, "")), api.namespace)


class Defaults:
    """Settings by their names in the models, for every mode and for each."""

    def __init__(self, origin: str, common: Mapping[str, Any], modes: Mapping[str, Mapping[str, Any]]) -> None:
        self._origin = origin
        self._common = common
        self._modes = modes

    @classmethod
    def parse(cls, text: str, namespace: str) -> "Defaults":
        """What the ConfigMap holds.

        Raises:
            ConfigError: it is no mapping of settings.
        """
        origin = f"cluster defaults (configmap {CONFIG_MAP} in {namespace})"
        common = named(from_yaml(text, where=origin), where=origin)
        modes = named(common.pop(_MODES, None), where=f"{origin}, {_MODES}")
        unknown = modes.keys() - MODE_PRESETS.keys()
        if unknown:
            raise ConfigError(f"{origin}: no such mode: {', '.join(sorted(unknown))}; have it mended")
        found = {mode: named(part, where=f"{origin}, {_MODES}.{mode}") for mode, part in modes.items()}
        for part in (common, *found.values()):
            _check(part, origin)
        return cls(origin, common, found)

    def layer(self, mode: str) -> Layer:
        """What counts in this mode."""
        return Layer(self._origin, {**self._common, **self._modes.get(mode, {})})


def _check(values: Mapping[str, Any], origin: str) -> None:
    known = {*JobOptions.model_fields, *TrainConfig.model_fields}
    for name in values:
        if name not in known:
            raise ConfigError(f"unknown setting `{name}` in {origin}; have it mended")
        if name in NO_DEFAULTS:
            raise ConfigError(f"{origin}: `{name}` is each job's own, and can have no default; have it removed")
