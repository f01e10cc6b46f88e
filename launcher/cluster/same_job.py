"""Whether a job on the cluster is the job that a user submits again, and how the two differ. Pure."""

from collections.abc import Sequence
from typing import Any

from launcher.kinds.objects import spec_of
from launcher.kube.api import Json
from launcher.settings.spec import JobSpec, job_digest

_SHOWN_DIFFERENCES = 5
# Parts of a recorded spec that a difference does not name: three of them say only where a value comes from.
_NO_SETTINGS = frozenset(("train", "pods", "name", "given", "without_defaults", "origins"))


def is_same_job(job: Json, spec: JobSpec) -> bool:
    """Return whether the job object was made of the same settings, by this release or an older one."""
    return job_digest(spec_of(job)) == spec.digest


def running_note(existing: Json, spec: JobSpec) -> str:
    """Return the note about a job that is submitted while it runs, with defaults that have changed meanwhile."""
    changed = _differences(existing, spec)
    since = f"; the administrator's defaults have changed since: {_listed(changed)}" if changed else ""
    return f"job {spec.name} is already running: the same job was submitted before{since}"


def difference_text(existing: Json, spec: JobSpec) -> str:
    """Return the settings in which the two jobs differ, in words."""
    if not spec_of(existing):
        return "no launcher made it"
    return _listed(_differences(existing, spec)) or "it was given other settings"


def _differences(existing: Json, spec: JobSpec) -> list[str]:
    old = _flat(spec_of(existing))
    new = _flat(spec.model_dump(mode="json"))
    return [
        f"{name} is {_word(old.get(name))}, not {_word(value)}"
        for name, value in new.items()
        if old.get(name, value) != value
    ]


def _listed(differences: Sequence[str]) -> str:
    more = f" and {len(differences) - _SHOWN_DIFFERENCES} more" if len(differences) > _SHOWN_DIFFERENCES else ""
    return ", ".join(differences[:_SHOWN_DIFFERENCES]) + more


def _word(value: object) -> str:
    return "none" if value is None else str(value)


def _flat(spec: dict[str, Any]) -> dict[str, Any]:
    sections = (spec, spec.get("train", {}), spec.get("pods", {}))
    return {name: value for section in sections for name, value in section.items() if name not in _NO_SETTINGS}
