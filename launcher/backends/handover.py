"""What a job was given, kept while there is no job: from the removal of one attempt to the creation of the next.

A job's settings are in its object, and two attempts cannot have the same name at the same time. If the next one cannot
be created, or its launcher is killed in between, a ConfigMap still has what was given to the last one.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from launcher.backends.kinds import attempt_of, spec_of
from launcher.errors import LauncherError
from launcher.kube.api import Api, ApiError, Json
from launcher.kube.resources import CONFIG_MAPS
from launcher.names import JOB, MANAGED

_KEY = "attempt.json"


@dataclass(frozen=True)
class Kept:
    """An attempt that was removed, and has no successor yet."""

    attempt: int
    spec: Mapping[str, Any]


def name_of(job: str) -> str:
    """The ConfigMap's."""
    return f"pnas-handover-{job}"


def keep(api: Api, job: Json) -> None:
    """Keep the settings of `job`, which is about to be removed."""
    name = job["metadata"]["name"]
    kept = {"attempt": attempt_of(job), "spec": spec_of(job)}
    body = {
        "apiVersion": CONFIG_MAPS.api_version,
        "kind": "ConfigMap",
        "metadata": {"name": name_of(name), "labels": {**MANAGED, JOB: name}},
        "data": {_KEY: json.dumps(kept)},
    }
    drop(api, name)
    api.create(CONFIG_MAPS, body)


def kept(api: Api, job: str) -> Kept | None:
    """What is kept for a job; None if there is nothing, or we may not look."""
    try:
        found = api.find(CONFIG_MAPS, name_of(job))
    except ApiError as error:
        if not error.of_rights:
            raise
        return None
    if found is None:
        return None
    try:
        values = json.loads(found["data"][_KEY])
        return Kept(int(values["attempt"]), dict(values["spec"]))
    except (KeyError, TypeError, ValueError):
        return None  # somebody else's, or spoilt


def drop(api: Api, job: str) -> None:
    """Forget it: the job is there again, or nobody wants it any more. That it stays does no harm."""
    with suppress(LauncherError):
        api.delete(CONFIG_MAPS, name_of(job))
