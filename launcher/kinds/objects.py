"""Reading a cluster's objects of every kind: labels and annotations of the launcher, owners, times.

Pure: objects as the API server gives them go in, plain values come out.
"""

import json
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from launcher.kinds.labels import ATTEMPT_ANNOTATION, JOB_LABEL, MANAGED, SPEC_ANNOTATION
from launcher.kube.api import Json
from launcher.recorded_spec import is_spec

_NUMBER = re.compile(r"[0-9]{1,9}")


def annotations(item: Json) -> Mapping[str, str]:
    """Return an object's annotations, which may be missing."""
    return item["metadata"].get("annotations") or {}


def is_part_of(item: Json, job: str) -> bool:
    """Return whether a launcher made the object for the job of this name."""
    return (item["metadata"].get("labels") or {}).items() >= {**MANAGED, JOB_LABEL: job}.items()


def attempt_number(job: Json) -> int:
    """Return how often the job was submitted; 1 if a user has damaged the number."""
    number = annotations(job).get(ATTEMPT_ANNOTATION, "")
    return int(number) if _NUMBER.fullmatch(number) else 1


def spec_of(job: Json) -> dict[str, Any]:
    """Return the recorded JobSpec as plain values; empty if it is damaged, or if no launcher made the job."""
    try:
        spec = json.loads(annotations(job).get(SPEC_ANNOTATION, "{}"))
    except (ValueError, RecursionError):
        spec = {}
    return spec if is_spec(spec) else {}


def owner_reference(job: Json, *, controller: bool = True) -> dict[str, Any]:
    """Return the reference that makes the cluster delete an object together with the job."""
    meta = job["metadata"]
    reference = {"apiVersion": job["apiVersion"], "kind": job["kind"], "name": meta["name"], "uid": meta["uid"]}
    return {**reference, "controller": True} if controller else reference


def unix_time(timestamp: str | None) -> float | None:
    """Return the seconds since 1970 of a time as Kubernetes writes it (RFC 3339)."""
    return None if timestamp is None else datetime.fromisoformat(timestamp.replace("Z", "+00:00")).timestamp()


def clock_time(seconds: float) -> str:
    """Return the time of day as the user's clock shows it."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%H:%M:%S")


def timestamp_now() -> str:
    """Return the current time as Kubernetes writes it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


YOUNG_S = 10.0
"""Age until which controllers have perhaps not seen an object: Volcano's scheduler looks once a second."""


def is_young(item: Json, now: float) -> bool:
    """Return whether controllers have perhaps not seen the object yet. Volcano recreates a PodGroup at each restart."""
    created = unix_time(item["metadata"].get("creationTimestamp"))
    return created is None or now - created <= YOUNG_S
