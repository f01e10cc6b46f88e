"""JobSpec: everything that is needed to run a job, on whatever backend, and the trainer's command line for it.

A spec is complete and resolved: names are chosen, paths are absolute, every setting has its value. A backend never
looks at flags, environment or profiles again.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from launcher.errors import RequestError
from launcher.jobs import UNSUPPORTED
from launcher.manifests.overlay import read_overlay
from launcher.settings.hardware import PRESETS, Hardware, refusal
from launcher.settings.options import PLACE, ClusterOptions
from trainer.shared.config import EMULATED, TrainConfig
from trainer.shared.config.layers import flag_name

OUTPUT = Path("/output")
"""Where the output claim is mounted."""

LONGEST_NAME = 40
# A DNS label, as a cluster wants it, with room for what is appended to it: -<task>-<index>, -svc.
NAME_PATTERN = r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$"
# What Python makes of bytes that are no UTF-8 (PEP 383).
_BYTES = re.compile("[\ud800-\udfff]")


def is_job_name(text: str) -> bool:
    """Whether a job can have this name."""
    return re.fullmatch(NAME_PATTERN, text) is not None


def _plain_name(value: object) -> object:
    """Say the rule in words; a pattern is no help at a terminal."""
    # YAML takes a job called 2024 for a number.
    if value is not None and not is_job_name(str(value)):
        raise ValueError("use a letter, then letters, digits and `-`, lower case, 40 at most")
    return value


def _supported(value: object) -> object:
    """Say why of a backend that somebody may expect."""
    if isinstance(value, str) and value in UNSUPPORTED:
        raise ValueError(UNSUPPORTED[value])
    return value


class _Named(BaseModel):
    """What every job has, wherever it runs."""

    backend: Annotated[Literal["auto", "local", "batch", "volcano"], BeforeValidator(_supported)] = Field(
        "auto",
        description="Where to run: this machine, a Kubernetes Job, a Volcano Job; auto is the best that there is.",
        json_schema_extra={"group": "Job"},
    )
    name: Annotated[str | None, BeforeValidator(_plain_name)] = Field(
        None,
        description="Name of the job and of its output folder. [default: pnas-MODE-MODEL-TIME; on a cluster, by its "
        "content]",
        json_schema_extra={"group": "Job"},
    )


# Fields come in the order of the bases, from the last to the first.
class JobOptions(ClusterOptions, _Named):
    """The settings that belong to the launcher; all others are the trainer's."""


class JobSpec(BaseModel):
    """A job. `train.run_name` is the job's name; all of `train`'s paths are absolute.

    Attributes:
        given: the settings of `train` that the trainer is told; it chooses the others itself.
        continues: an ended job of this name is to go on.
        pods: what a cluster needs to know; for this machine it says nothing.
        overlay: what is merged into the pod template.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=NAME_PATTERN)
    backend: Literal["local", "batch", "volcano"]
    train: TrainConfig
    given: tuple[str, ...]
    continues: bool = False
    pods: ClusterOptions = ClusterOptions()
    overlay: dict[str, Any] = {}

    @property
    def output(self) -> Path:
        """The folder that the trainer writes to."""
        return self.train.output / self.name

    @property
    def rank_table(self) -> bool:
        """Whether MindCluster's controller is to write a rank table for it."""
        auto = self.backend == "volcano" and self.train.device != "cpu"
        return auto if self.pods.mindcluster == "auto" else self.pods.mindcluster == "on"

    @property
    def hardware(self) -> Hardware | None:
        """What is known of the servers that its pods are for."""
        return None if self.pods.hardware is None else PRESETS[self.pods.hardware]

    @property
    def digest(self) -> str:
        """What makes two jobs the same, whatever they are called: hexadecimal SHA-256 of all other settings."""
        # The overlay is what it says, wherever its file is.
        values = self.model_dump(
            mode="json", exclude={"name": True, "continues": True, "train": {"run_name"}, "pods": {"overlay"}}
        )
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def make_spec(
    options: JobOptions, train: TrainConfig, given: Sequence[str], *, now: datetime, taken: Callable[[str], bool]
) -> JobSpec:
    """A job on this machine: choose a free name if none is given, and make every path absolute.

    Args:
        given: the settings of `train` that somebody set.
    """
    output = _absolute(train.output)
    name = options.name or free_name(
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
        given=_in_order({*given, "output", "run_name"}),
        continues=train.resume is not None,
    )


def make_cluster_spec(
    options: JobOptions,
    train: TrainConfig,
    given: Sequence[str],
    *,
    backend: Literal["batch", "volcano"],
    overlay: Mapping[str, Any],
) -> JobSpec:
    """A job on a cluster, named by its content unless a name is given.

    A pod that is started again goes on from its newest checkpoint, so the trainer is always told to resume what there
    is.

    Args:
        overlay: what is merged into the pod template where `options` name no file.

    Raises:
        RequestError: what is asked for cannot run in a pod.
    """
    _refuse_bytes(options, train)
    pod_train = _for_pods(options, train, given)
    _refuse_without_effect(options, backend)
    pods = ClusterOptions(**{name: getattr(options, name) for name in ClusterOptions.model_fields if name not in PLACE})
    if train.device == "cpu":
        pods = pods.model_copy(update={"hardware": None})
    spec = JobSpec(
        name=options.name or "unnamed",
        backend=backend,
        train=pod_train,
        given=_in_order({*given, "npus", "output", "resume", "run_name", *(("nodes",) if train.nodes > 1 else ())}),
        continues=train.resume is not None,
        pods=pods,
        overlay=dict(overlay) if options.overlay is None else read_overlay(options.overlay),
    )
    return renamed(spec, options.name or f"pnas-{train.mode}-{spec.digest[:8]}")


def renamed(spec: JobSpec, name: str) -> JobSpec:
    """The same job under another name."""
    return spec.model_copy(update={"name": name, "train": spec.train.model_copy(update={"run_name": name})})


def _refuse_bytes(*settings: BaseModel) -> None:
    """A path of this machine may hold bytes that are no text; a manifest takes none."""
    for name, values in (pair for one in settings for pair in one):
        for value in values if isinstance(values, tuple) else (values,):
            if _BYTES.search(str(value)):
                raise RequestError(f"{flag_name(name)} {str(value)[:80]!a}: is not UTF-8; give text")


def _refuse_without_effect(options: JobOptions, backend: str) -> None:
    """What somebody relies on must not be left out without a word."""
    if backend == "volcano" and options.deadline is not None:
        raise RequestError(
            f"--deadline {options.deadline}: Volcano Jobs have none; leave it out, or use --backend batch"
        )
    if backend == "batch" and options.mindcluster == "on":
        raise RequestError(
            "--mindcluster on: MindCluster writes no rank table for a Kubernetes Job; leave it out, or use --backend "
            "volcano"
        )


def _for_pods(options: JobOptions, train: TrainConfig, given: Sequence[str]) -> TrainConfig:
    """The trainer's settings as they are in a pod, where claims are mounted and devices are counted."""
    npus = train.npus or 1
    if said := refusal(None if train.device == "cpu" else options.hardware, npus, train.nodes):
        raise RequestError(said)
    for name, why in (
        ("node_rank", "each pod has its own"),
        ("master_addr", "it is pod 0"),
        ("rank_table", "MindCluster writes it; see --mindcluster"),
    ):
        if name in given:
            raise RequestError(f"{flag_name(name)}: on a cluster {why}; leave it out")
    if train.device == EMULATED:
        raise RequestError(
            f"--device {EMULATED}: pods have no emulated NPUs; leave it out, or use --backend local in a checkout"
        )
    if options.image is None:
        raise RequestError("--image is missing: the image that holds the trainer, like registry.example/pnas:0.1.0")
    output = train.output if "output" in given else OUTPUT
    for name, path in (("data_path", train.data_path), ("output", output), ("weights", train.weights)):
        if path is not None and not path.is_absolute():
            raise RequestError(f"{flag_name(name)} {path}: give the absolute path that the pod sees, like /data/x")
    if not output.is_relative_to(OUTPUT):
        raise RequestError(f"--output {output}: pods keep nothing but what is below {OUTPUT}, the output claim")
    return train.model_copy(update={"npus": npus, "output": output, "resume": train.resume or "auto"})


def trainer_options(spec: JobSpec) -> list[str]:
    """The options that make `python -m trainer` resolve to `spec.train`.

    Exactly what was set is passed, and what the trainer would choose by itself is not: settings that nobody set may
    still come from weights or a checkpoint, which the launcher does not read.
    """
    return [word for field in spec.given for word in _words(field, getattr(spec.train, field))]


def _in_order(names: set[str]) -> tuple[str, ...]:
    return tuple(field for field in TrainConfig.model_fields if field in names)


def _words(field: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [flag_name(field if value else f"no_{field}")]
    text = "none" if value is None else str(value)
    # 30, not 30.0: as people write it, and Helm.
    return [flag_name(field), text.removesuffix(".0") if isinstance(value, float) else text]


def free_name(base: str, taken: Callable[[str], bool]) -> str:
    """`base`, or `base-2`, `base-3`, …: the first that is not taken; of a long base, as much as there is room for."""
    name, count = base, 1
    while taken(name):
        count += 1
        end = f"-{count}"
        name = base[: LONGEST_NAME - len(end)].rstrip("-") + end
    return name


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()
