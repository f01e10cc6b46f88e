"""JobSpec: everything that is needed to run a job, on whatever backend, and the trainer's command line for it.

A spec is complete and resolved: names are chosen, paths are absolute, every setting has its value. A backend never
looks at flags, environment or profiles again.
"""

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from trainer.config import TrainConfig
from trainer.config.layers import flag_name

# A DNS label, as a cluster wants it, with room for what is appended to it: -<task>-<index>, -svc.
NAME_PATTERN = r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$"


def is_job_name(text: str) -> bool:
    """Whether a job can have this name."""
    return re.match(NAME_PATTERN, text) is not None


def _plain_name(value: object) -> object:
    """Say the rule in words; a pattern is no help at a terminal."""
    # YAML takes a job called 2024 for a number.
    if value is not None and not is_job_name(str(value)):
        raise ValueError("use a letter, then letters, digits and `-`, lower case, 40 at most")
    return value


class JobOptions(BaseModel):
    """The settings that belong to the launcher; all others are the trainer's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backend: Literal["auto", "local"] = Field(
        "auto",
        description="Where to run: on this machine, or where a cluster is found.",
        json_schema_extra={"group": "Job"},
    )
    name: Annotated[str | None, BeforeValidator(_plain_name)] = Field(
        None,
        description="Name of the job and of its output folder. [default: pnas-MODE-MODEL-TIME]",
        json_schema_extra={"group": "Job"},
    )


class JobSpec(BaseModel):
    """A job. `train.run_name` is the job's name; all of `train`'s paths are absolute."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=NAME_PATTERN)
    backend: Literal["local"]
    train: TrainConfig
    given: tuple[str, ...]
    """The settings of `train` that the trainer is told; it chooses the others itself."""

    @property
    def output(self) -> Path:
        """The folder that the trainer writes to."""
        return self.train.output / self.name


def make_spec(
    options: JobOptions, train: TrainConfig, given: Sequence[str], *, now: datetime, taken: Callable[[str], bool]
) -> JobSpec:
    """Choose a free name if none is given, and make every path absolute.

    Args:
        given: the settings of `train` that somebody set.
    """
    output = _absolute(train.output)
    name = options.name or _free_name(
        f"pnas-{train.mode}-{train.model.removeprefix('pnasnet5')}-{now:%m%d-%H%M%S}",
        lambda name: taken(name) or (output / name).exists(),
    )
    paths = {
        field: _absolute(value)
        for field in type(train).model_fields
        if isinstance(value := getattr(train, field), Path)
    }
    return JobSpec(
        name=name,
        backend="local",
        train=train.model_copy(update={**paths, "run_name": name}),
        given=tuple(field for field in type(train).model_fields if field in {*given, "output", "run_name"}),
    )


def trainer_options(spec: JobSpec) -> list[str]:
    """The options that make `python -m trainer` resolve to `spec.train`.

    Exactly what was set is passed, and what the trainer would choose by itself is not: settings that nobody set may
    still come from weights or a checkpoint, which the launcher does not read.
    """
    return [word for field in spec.given for word in _words(field, getattr(spec.train, field))]


def _words(field: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [flag_name(field if value else f"no_{field}")]
    return [flag_name(field), "none" if value is None else str(value)]


def _free_name(base: str, taken: Callable[[str], bool]) -> str:
    name, count = base, 1
    while taken(name):
        count += 1
        name = f"{base}-{count}"
    return name


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()
