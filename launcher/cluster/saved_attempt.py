"""The attempt whose settings a job's next attempt takes over: the latest one that the trainer did not refuse.

A job's object has its settings, and the settings of the attempt that it continues. Two attempts cannot have the same
name at the same time: from the removal of one to the creation of the next, a ConfigMap has the settings. They are not
lost if the next one cannot be created, or if its launcher is killed in between.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from launcher import PROGRAM
from launcher.errors import ApiError, LauncherError
from launcher.kinds.labels import EARLIER_ANNOTATION, JOB_LABEL, MANAGED
from launcher.kinds.objects import annotations, attempt_number, is_part_of, spec_of
from launcher.kube.api import TAKEN, Api, Json, if_allowed
from launcher.kube.resources import CONFIG_MAPS
from launcher.recorded_spec import is_spec

_KEY = "attempt.json"


@dataclass(frozen=True)
class SavedAttempt:
    """The attempt whose settings the next one takes over.

    Attributes:
        attempt: its number.
        latest: the number of the job's latest attempt; another one if the trainer refused that attempt.
    """

    attempt: int
    latest: int
    spec: Mapping[str, Any]

    def to_json(self) -> str:
        """Return the text that an annotation and the ConfigMap hold."""
        return json.dumps(asdict(self))


def attempt_to_continue(job: Json, *, refused: bool) -> SavedAttempt:
    """Return the attempt of an existing job whose settings the next one takes over.

    Args:
        refused: the trainer refused the job's settings. They count only if the job continues no other attempt.
    """
    number = attempt_number(job)
    earlier = _parse(annotations(job).get(EARLIER_ANNOTATION, "")) if refused else None
    return SavedAttempt(number, number, spec_of(job)) if earlier is None else replace(earlier, latest=number)


def correction(job: Json) -> str:
    """Return the next step for a job that the trainer refused."""
    attempt = attempt_to_continue(job, refused=True)
    if attempt.attempt != attempt.latest:
        return f"its settings do not count: --resume auto takes the settings of attempt {attempt.attempt}"
    return "to correct an option, give it again with --resume auto, which keeps the others"


def config_map_name(kind: str, job: str) -> str:
    """Return the name of the ConfigMap; a Kubernetes Job and a Volcano Job can have the same name."""
    return f"pnas-handover-{kind}-{job}"


def save(api: Api, kind: str, name: str, attempt: SavedAttempt) -> list[str]:
    """Save an attempt before the job's removal; return a warning if the user has no right to do so."""
    body = {
        "apiVersion": CONFIG_MAPS.api_version,
        "kind": "ConfigMap",
        "metadata": {"name": config_map_name(kind, name), "labels": {**MANAGED, JOB_LABEL: name}},
        "data": {_KEY: attempt.to_json()},
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
    return None if config_map is None else _parse((config_map.get("data") or {}).get(_KEY, ""))


def drop(api: Api, kind: str, job: str) -> None:
    """Forget the saved attempt: the job exists again, or the user has deleted it."""
    with suppress(LauncherError):
        config_map = _find(api, kind, job)
        if config_map is not None:
            api.delete(CONFIG_MAPS, config_map_name(kind, job), uid=config_map["metadata"]["uid"])


def hint(api: Api, kind: str, job: str) -> str:
    """Return what a user can do about a job of which only the saved attempt exists; empty without one."""
    if load(api, kind, job) is None:
        return ""
    namespace = f"--namespace {api.namespace}"
    forget = f"kubectl delete configmap {config_map_name(kind, job)} {namespace}"
    # Without --backend, submit would choose by what the cluster serves now.
    resume = f"{PROGRAM} submit --name {job} --resume auto --backend {kind} {namespace}"
    return f". It was removed for an attempt that could not be created: `{resume}` goes on, `{forget}` forgets it"


def _parse(text: str) -> SavedAttempt | None:
    """Return the attempt; None if the text is missing, or if a user has edited it."""
    try:
        values = json.loads(text)
        number, spec = int(values["attempt"]), values["spec"]
        latest = int(values.get("latest", number))
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return SavedAttempt(number, latest, spec) if is_spec(spec) else None


def _find(api: Api, kind: str, job: str) -> Json | None:
    """Return the ConfigMap if a launcher made it and the user may read it."""
    config_map, _ = if_allowed(lambda: api.find(CONFIG_MAPS, config_map_name(kind, job)))
    return config_map if config_map is not None and is_part_of(config_map, job) else None
