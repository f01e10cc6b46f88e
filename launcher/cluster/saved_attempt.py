"""The settings of the last attempt, saved while there is no job: from its removal to the creation of the next one.

A job's settings are in its object, and two attempts cannot have the same name at the same time. If the next one cannot
be created, or its launcher is killed in between, a ConfigMap still has the settings of the last one.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from launcher.errors import ApiError, LauncherError
from launcher.kinds.labels import JOB_LABEL, MANAGED
from launcher.kinds.objects import attempt_number, is_part_of, spec_of
from launcher.kube.api import TAKEN, Api, Json, if_allowed
from launcher.kube.resources import CONFIG_MAPS
from launcher.recorded_spec import is_spec

_KEY = "attempt.json"


@dataclass(frozen=True)
class SavedAttempt:
    """An attempt that was removed, and has no successor yet."""

    attempt: int
    spec: Mapping[str, Any]


def config_map_name(kind: str, job: str) -> str:
    """Return the name of the ConfigMap; a Kubernetes Job and a Volcano Job can have the same name."""
    return f"pnas-handover-{kind}-{job}"


def save(api: Api, kind: str, job: Json) -> list[str]:
    """Save the settings of `job` before its removal; return a warning if the user has no right to do so."""
    name = job["metadata"]["name"]
    values = {"attempt": attempt_number(job), "spec": spec_of(job)}
    body = {
        "apiVersion": CONFIG_MAPS.api_version,
        "kind": "ConfigMap",
        "metadata": {"name": config_map_name(kind, name), "labels": {**MANAGED, JOB_LABEL: name}},
        "data": {_KEY: json.dumps(values)},
    }
    try:
        api.create(CONFIG_MAPS, body)
    except ApiError as error:
        if error.of_rights:
            return [f"the settings of {name} are not saved while it is restarted: {error}"]
        if error.status != TAKEN or _find(api, kind, name) is None:
            raise
        api.patch(CONFIG_MAPS, config_map_name(kind, name), {"data": body["data"]})
    return []


def load(api: Api, kind: str, job: str) -> SavedAttempt | None:
    """Return the saved attempt of a job; None without a ConfigMap that the user may read."""
    config_map = _find(api, kind, job)
    if config_map is None:
        return None
    try:
        values = json.loads(config_map["data"][_KEY])
        attempt, spec = int(values["attempt"]), values["spec"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None  # A user has edited it.
    return SavedAttempt(attempt, spec) if is_spec(spec) else None


def drop(api: Api, kind: str, job: str) -> None:
    """Forget the saved attempt: the job exists again, or the user has deleted it."""
    with suppress(LauncherError):
        config_map = _find(api, kind, job)
        if config_map is not None:
            api.delete(CONFIG_MAPS, config_map_name(kind, job), uid=config_map["metadata"]["uid"])


def _find(api: Api, kind: str, job: str) -> Json | None:
    """Return the ConfigMap if a launcher made it and the user may read it."""
    config_map, _ = if_allowed(lambda: api.find(CONFIG_MAPS, config_map_name(kind, job)))
    return config_map if config_map is not None and is_part_of(config_map, job) else None
