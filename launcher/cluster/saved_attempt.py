"""What a job was given, kept while there is no job: from the removal of one attempt to the creation of the next.

A job's settings are in its object, and two attempts cannot have the same name at the same time. If the next one cannot
be created, or its launcher is killed in between, a ConfigMap still has what was given to the last one.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from launcher.cluster.kinds import attempt_of, is_part_of, spec_of
from launcher.errors import LauncherError
from launcher.kube.api import TAKEN, Api, ApiError, Json
from launcher.kube.resources import CONFIG_MAPS
from launcher.manifests.labels import JOB, MANAGED

_KEY = "attempt.json"


@dataclass(frozen=True)
class Kept:
    """An attempt that was removed, and has no successor yet."""

    attempt: int
    spec: Mapping[str, Any]


def name_of(kind: str, job: str) -> str:
    """The ConfigMap's. A Kubernetes Job and a Volcano Job may have the same name."""
    return f"pnas-handover-{kind}-{job}"


def keep(api: Api, kind: str, job: Json) -> list[str]:
    """Save the settings of `job`, which is about to be removed; return a warning if the user may not do that."""
    name = job["metadata"]["name"]
    values = {"attempt": attempt_of(job), "spec": spec_of(job)}
    body = {
        "apiVersion": CONFIG_MAPS.api_version,
        "kind": "ConfigMap",
        "metadata": {"name": name_of(kind, name), "labels": {**MANAGED, JOB: name}},
        "data": {_KEY: json.dumps(values)},
    }
    try:
        api.create(CONFIG_MAPS, body)
    except ApiError as error:
        if error.of_rights:
            return [f"the settings of {name} are not kept while it is started anew: {error}"]
        if error.status != TAKEN or _found(api, kind, name) is None:
            raise
        api.patch(CONFIG_MAPS, name_of(kind, name), {"data": body["data"]})
    return []


def kept(api: Api, kind: str, job: str) -> Kept | None:
    """What is kept for a job; None if there is nothing, or we may not look."""
    found = _found(api, kind, job)
    if found is None:
        return None
    try:
        values = json.loads(found["data"][_KEY])
        return Kept(int(values["attempt"]), dict(values["spec"]))
    except (KeyError, TypeError, ValueError):
        return None  # spoilt


def drop(api: Api, kind: str, job: str) -> None:
    """Forget it: the job is there again, or nobody wants it any more."""
    with suppress(LauncherError):
        found = _found(api, kind, job)
        if found is not None:
            api.delete(CONFIG_MAPS, name_of(kind, job), uid=found["metadata"]["uid"])


def _found(api: Api, kind: str, job: str) -> Json | None:
    """The ConfigMap, if there is one that a launcher made, and we may look."""
    try:
        found = api.find(CONFIG_MAPS, name_of(kind, job))
    except ApiError as error:
        if not error.of_rights:
            raise
        return None
    return found if found is not None and is_part_of(found, job) else None
