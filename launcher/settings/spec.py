"""JobSpec: everything that a backend needs to run a job, the job's identity, and the trainer's command line for it.

A spec is complete and resolved: names are chosen, paths are absolute, every setting has its value. A backend never
looks at flags, environment or profiles again.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_jsonable_python

from launcher.settings.options import LONGEST_NAME, NAME_PATTERN, PLACE, ClusterOptions
from trainer.shared.config import TrainConfig
from trainer.shared.config.layers import flag_name

OUTPUT = Path("/output")
"""Where the output claim is mounted."""
_IDENTITY_FORMAT = 1
"""Raise it when a default gets another meaning, so that jobs before and after the change are not taken for the same."""
# The trainer in a pod always gets these, whatever the user sets.
_ALWAYS_TOLD = {"output": str(OUTPUT), "resume": "auto"}

_DEFAULTS: Mapping[str, Any] = {
    name: to_jsonable_python(field.get_default(call_default_factory=True))
    for model in (TrainConfig, ClusterOptions)
    for name, field in model.model_fields.items()
    if not field.is_required()
}


class JobSpec(BaseModel):
    """A job. `train.run_name` is the job's name; all of `train`'s paths are absolute.

    Attributes:
        backend: where it runs; never `auto`.
        given: the settings of `train` that the trainer is told; it chooses the others itself.
        continues: whether an ended job of this name goes on.
        pods: settings that only a cluster uses.
        overlay: what is merged into the pod template.
        without_defaults: the values that settings would have without the administrator's defaults.
        origins: for each setting that is no default, the layer that gave it; only reports read them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=NAME_PATTERN)
    backend: str
    train: TrainConfig
    given: tuple[str, ...]
    continues: bool = False
    pods: ClusterOptions = ClusterOptions()
    overlay: dict[str, Any] = {}
    without_defaults: dict[str, Any] = {}
    origins: dict[str, str] = {}

    @property
    def output(self) -> Path:
        """The folder that the trainer writes to."""
        return self.train.output / self.name

    @property
    def digest(self) -> str:
        """The identity of the job, which does not depend on its name."""
        return job_digest(self.model_dump(mode="json"))


def job_digest(record: Mapping[str, Any]) -> str:
    """Return the identity of a recorded JobSpec: hexadecimal SHA-256 of the settings that were set.

    A default does not count, so that a release with new options finds the jobs of an older one. A setting of the
    trainer counts if the trainer is told it, or if a preset gives it another value than the default; a setting of the
    pods counts if its value is not the default. The administrator's defaults do not count either: a job stays the same
    when they change.
    """
    without_defaults = record.get("without_defaults", {})
    given = frozenset(record.get("given", ())) - without_defaults.keys()
    train = {
        name: value
        for name, value in _user_values(record.get("train", {}), without_defaults)
        if name != "run_name" and (name in given or value != _DEFAULTS.get(name)) and _ALWAYS_TOLD.get(name) != value
    }
    # The overlay counts by its content, wherever its file is.
    pods = {
        name: value
        for name, value in _user_values(record.get("pods", {}), without_defaults)
        if name not in PLACE | {"overlay"} and value != _DEFAULTS.get(name)
    }
    identity = {
        "format": _IDENTITY_FORMAT,
        "backend": record.get("backend"),
        "train": train,
        "pods": pods,
        "overlay": record.get("overlay", {}),
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _user_values(section: Mapping[str, Any], without_defaults: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the settings of a recorded section, with the values that they have without the administrator's defaults."""
    return ((name, without_defaults.get(name, value)) for name, value in section.items())


def renamed(spec: JobSpec, name: str) -> JobSpec:
    """Return the same job under another name."""
    return spec.model_copy(update={"name": name, "train": spec.train.model_copy(update={"run_name": name})})


def trainer_options(spec: JobSpec) -> list[str]:
    """Return the options that make `python -m trainer` resolve to `spec.train`.

    Only settings that were set are passed. The others can still come from weights or a checkpoint, which the launcher
    does not read.
    """
    return [word for field in spec.given for word in _words(field, getattr(spec.train, field))]


def in_field_order(names: Set[str]) -> tuple[str, ...]:
    """Return names of the trainer's settings in the order of its options."""
    return tuple(field for field in TrainConfig.model_fields if field in names)


def _words(field: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [flag_name(field if value else f"no_{field}")]
    text = "none" if value is None else str(value)
    # 30, not 30.0, as people write it.
    return [flag_name(field), text.removesuffix(".0") if isinstance(value, float) else text]


def free_name(base: str, taken: Callable[[str], bool]) -> str:
    """Return the first free name of `base`, `base-2`, `base-3`, …; a long base is cut to make room."""
    name, count = base, 1
    while taken(name):
        count += 1
        end = f"-{count}"
        name = base[: LONGEST_NAME - len(end)].rstrip("-") + end
    return name
