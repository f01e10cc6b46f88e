"""The JSON that both command lines print, as types: their schemas in docs/schema, and the page docs/json.md."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model

from docs.formats import pretty_json, table
from launcher.jobs import Phase
from trainer.checkpoint.reading import TensorInfo
from trainer.environment.facts import Facts
from trainer.environment.findings import EnvironmentFinding
from trainer.proof.report import Proof
from trainer.ranktable.table import RankTable
from trainer.shared.documents import camel_case

PAGE, FOLDER = Path(__file__).with_name("json.md"), Path(__file__).with_name("schema")


class Part(BaseModel):
    """A part of a document. Every field is always there; null stands for what is unknown."""

    model_config = ConfigDict(extra="forbid", alias_generator=camel_case)


class Document(Part):
    """A document; its kind is the name of its class."""

    api_version: Literal["pnas/v1"]
    kind: str


def of_dataclass(kind: str, text: str, values: type, **others: Any) -> type[Document]:
    """Return a document that has the fields of a dataclass, and others."""
    hints = get_type_hints(values)
    types: dict[str, Any] = {
        "kind": Literal[kind],
        **others,
        **{field.name: hints[field.name] for field in fields(values)},
    }
    definitions: dict[str, Any] = {name: (part, ...) for name, part in types.items()}
    return create_model(kind, __base__=Document, __doc__=text, **definitions)


class Error(Document):
    """Why a command gave no result. The exit code is the same as without --json."""

    kind: Literal["Error"]
    code: int = Field(description="The exit code.")
    reason: str = Field(description="The class of the error, such as NotFound, Usage or JobFailed.")
    message: str = Field(description="The line on standard error.")


class Setting(Part):
    """A setting."""

    value: Any
    origin: str = Field(description="The layer that gave the value.")
    set: bool = Field(description="Whether a layer above the presets and defaults gave it: `--profile` reads these.")


class Config(Document):
    """The settings that `submit` would use. `--profile` reads it."""

    kind: Literal["Config"]
    settings: dict[str, Setting]


class LineFields(BaseModel):
    """The fields of a line of the log, by the names that they have there. It can have more."""

    model_config = ConfigDict(extra="allow")


# JSON has no nan and no inf: they are texts.
Number = float | Literal["nan", "inf", "-inf"] | None


class Step(LineFields):
    """The latest step."""

    epoch: int | None
    epochs: int | None
    step: int | None
    steps: int | None
    loss: Number
    lr: Number
    fps: Number
    top1: Number
    skipped: int | None


class Evaluation(LineFields):
    """The latest evaluation."""

    epoch: int | None
    epochs: int | None
    loss: Number
    top1: Number
    top5: Number
    images: int | None
    best_top1: Number
    best_epoch: int | None


class Progress(LineFields):
    """How far a running job is, from the latest line `progress`; null before the second line about steps.

    `done` is a share in percent. The time left is between `left_low_s` and `left_high_s`, in nine of ten simulated
    runs. `limit` is the part in which the ranks spend most time, `slower` by how many percent the slowest rank is
    slower than the others, `slowest_part` its own largest part. `rates` are the images/s of each rank without waiting
    for others, `waits` each rank's largest part. The figures of the hardware follow for each rank's device, and the use
    of each node's host; `-` stands for an unknown one. All are in the order of ranks or nodes, with spaces between
    them; of one rank it is a number. `fps` are the images per second of a run that only evaluates.
    """

    done: Number
    left_s: Number
    left_low_s: Number
    left_high_s: Number
    limit: str | None
    slowest_rank: int | None
    slower: Number
    slowest_part: str | None
    rates: Number | str
    waits: str | None
    fps: Number
    use_percent: Number | str
    memory_percent: Number | str
    temperature_c: Number | str
    power_w: Number | str
    host_use_percent: Number | str


class Time(LineFields):
    """Where the time of the job went: seconds of each part, the mean of all ranks but the slowest."""

    data_s: Number
    host_s: Number
    device_s: Number
    peers_s: Number
    saving_s: Number
    evaluation_s: Number
    limit: str | None
    slowest_rank: int | None
    slower: Number
    slowest_part: str | None


class Result(LineFields):
    """The result. `train_s` are the seconds in which `fps` was measured; 0 and null if all steps were warm-up."""

    mode: str | None
    loss: Number
    top1: Number
    top5: Number
    images: int | None
    best_top1: Number
    best_epoch: int | None
    fps: Number
    train_s: Number
    wall_s: Number
    memory_mib: Number
    output: str | None


class Status(Part):
    """The state of a job. Times are ISO 8601 in UTC."""

    attempt: int = Field(description="How often it was submitted.")
    restarts: int = Field(description="How often the cluster has tried this attempt again.")
    phase: Phase
    reason: str | None
    exit_code: int | None = Field(description="The exit code of `wait`; null while it runs.")
    created: datetime | None
    started: datetime | None
    ended: datetime | None
    step: Step | None
    progress: Progress | None
    evaluation: Evaluation | None
    time: Time | None
    result: Result | None


class _OneJob(Part):
    name: str
    backend: Literal["local", "volcano", "batch"]


class Job(Document, _OneJob):
    """One job: `status`, `wait`, `cancel`, `recover`, and the last line of `submit` and `logs --follow`."""

    kind: Literal["Job"]
    spec: dict[str, Any] = Field(
        description="The recorded settings: `train`, `pods`, `overlay`; `given` names those of `train` that were set. "
        "Settings that come with the weights are left out unless they were set: config.yaml of the run has them."
    )
    output: str | None = Field(description="The run's folder, as the pod or this machine sees it.")
    status: Status
    details: dict[str, Any] = Field(description="The backend's own facts, such as pods; they can change.")


class JobSummary(_OneJob):
    """A job in a list."""

    mode: str | None
    model: str | None
    npus: int | None
    nodes: int | None
    output: str | None
    status: Status


class JobList(Document):
    """All jobs, the latest last: `list`, and `cancel --release`."""

    kind: Literal["JobList"]
    items: list[JobSummary]
    problem: str | None = Field(description="Why other jobs may be missing.")


class LiveDevice(Part):
    """A device of a live job, from the latest line `progress`; the hardware is sampled at most every 30 s."""

    rank: int
    waits: str | None = Field(description="Its largest part of the time: data, host, device, peers, saving.")
    images_per_s: float | None = Field(description="Without waiting for others.")
    use_percent: float | None = Field(description="Of an NPU's AI cores.")
    memory_percent: float | None
    temperature_c: float | None
    power_w: float | None


class LiveJob(JobSummary):
    """A live job with its devices, the first rank first; no device before its first figures."""

    devices: list[LiveDevice]


class LiveJobList(Document):
    """The jobs that have not ended, the latest first: `top`. The latest 32 running ones have their progress."""

    kind: Literal["LiveJobList"]
    items: list[LiveJob]
    problem: str | None = Field(description="Why other jobs may be missing.")


class JobAttempt(Part):
    """One attempt of a run: a start of its workers. Times are ISO 8601 in UTC."""

    attempt: int
    host: str | None = Field(description="The machine or the pod.")
    node: str | None
    nodes: int | None = Field(description="The number of nodes.")
    started: datetime | None
    ended: datetime | None = Field(description="The last sign of life of an attempt that was killed.")
    from_: str | None = Field(alias="from", description="What it continued from; null at the beginning of the run.")
    gap_s: int | None = Field(description="Seconds from the end of the attempt before to its start.")
    steps: int | None = Field(description="The steps of the run when it ended.")
    outcome: Literal["succeeded", "resumable", "failed", "lost"] | None = Field(description="Null while it runs.")
    rank: int | None = Field(description="The rank that failed first.")
    cause: str | None


class JobHistory(Document, _OneJob):
    """The attempts of a job's run, oldest first: `status --history`."""

    kind: Literal["JobHistory"]
    items: list[JobAttempt]


class FoundCause(Part):
    """A cause why a job waits or failed."""

    rule: str = Field(description="The name of the rule that found it, such as taint or out-of-memory.")
    text: str
    evidence: list[str] = Field(description="The words of the cluster or of the log that prove it.")
    steps: list[str] = Field(description="What to do next.")


class Explanation(Document, _OneJob):
    """Why a job waits or failed, the most likely cause first: `explain`."""

    kind: Literal["Explanation"]
    phase: Phase
    causes: list[FoundCause] = Field(description="Empty if nothing is wrong, or if the cause is not known.")
    hidden: list[str] = Field(description="What the user has no right to see.")


class JobDeleted(Document, _OneJob):
    """The job that `delete` has removed."""

    kind: Literal["JobDeleted"]
    files: str | None = Field(description="Where its output folder is, which stays.")


class ReportedRun(Part):
    """A run on the page."""

    name: str
    folder: str


class Report(Document):
    """The page that `report` has written."""

    kind: Literal["Report"]
    page: str
    runs: list[ReportedRun]
    problems: list[str] = Field(description="What is left out, because it cannot be read.")


class ProfiledOperator(Part):
    """An operator of a profile."""

    name: str
    seconds: float = Field(description="Its time in all its calls, without the operators that it calls.")
    share: float = Field(description="Its share of the time of all operators, from 0 to 1.")
    calls: int


class Profile(Document, _OneJob):
    """The profile that `profile` has taken."""

    kind: Literal["Profile"]
    rank: int
    steps: int = Field(description="The steps in it: fewer than asked for if the epoch ended.")
    epoch: int
    first_step: int = Field(description="The step of the epoch with which it begins.")
    trace: str = Field(description="Where the trace is.")
    operators: list[ProfiledOperator] = Field(description="The largest operators, the largest first.")


class Fetched(Document, _OneJob):
    """The files that `fetch` has copied."""

    kind: Literal["Fetched"]
    folder: str
    files: list[str] = Field(description="The paths that were copied now, relative to the folder.")
    bytes: int
    unchanged: int = Field(description="The number of files that were there already.")
    problems: list[str] = Field(description="The files that are not there, and why.")


class Bundle(Document, _OneJob):
    """The archive that `bundle` has written."""

    kind: Literal["Bundle"]
    archive: str
    files: list[str]
    hidden: int = Field(description="The number of places where a secret was hidden.")
    left_out: list[str] = Field(description="What is not in it, and why.")


class Submission(Document, _OneJob):
    """The first line of `submit`: the job that it started, or found."""

    kind: Literal["Submission"]
    attempt: int
    existed: bool = Field(description="Whether the job was there already.")
    output: str
    notes: list[str]


class SubmitCheck(Document, _OneJob):
    """The verdict of `submit --dry-run`."""

    kind: Literal["SubmitCheck"]
    verdict: str
    warnings: list[str]


class Finding(Part):
    """The result of one check."""

    about: str
    state: Literal["ok", "missing", "later", "unknown"]
    text: str


class FindingList(Document):
    """The checks of `doctor`."""

    kind: Literal["FindingList"]
    items: list[Finding]


class LogLine(Document):
    """A line of the log."""

    kind: Literal["LogLine"]
    time: str | None = Field(description="With --timestamps, when the cluster received it.")
    rank: int | None = Field(description="Null for a line of a node's supervisor, or of another program.")
    device: str | None
    node: int | None
    number: int | None = Field(description="The number of the line on its device or node, from 1.")
    line: str


class LogGap(Document):
    """Lines that were not delivered, so far."""

    kind: Literal["LogGap"]
    source: str
    first: int
    last: int


class LogLoss(Document):
    """Lines that are or may be lost for good."""

    kind: Literal["LogLoss"]
    text: str


class UnusableFile(Part):
    """A file that cannot be trained on."""

    path: str
    reason: str


class DataVerification(Document):
    """What `data verify` found."""

    kind: Literal["DataVerification"]
    path: str
    checked: int = Field(description="The number of images that were read.")
    broken: list[UnusableFile]
    notes: dict[str, int] = Field(description="The number of images with each unusual property.")
    left_out: dict[str, dict[str, int]] = Field(description="By folder, the number of other files by suffix or kind.")


Environment = of_dataclass(
    "Environment", "The facts of `env` about a machine.", Facts, findings=list[EnvironmentFinding]
)
ProofDocument = of_dataclass("Proof", "What `prove` has found on a machine, also in `proof.json`.", Proof)


class FoundCheckpoint(Part):
    """A checkpoint or a weight file."""

    path: str
    valid: bool
    refused: str | None


class ShownCheckpoint(Part):
    """The content of one of them."""

    path: str
    saved: str | None
    bytes: int
    content: dict[str, Any] = Field(description="What it says about itself.")
    tensors: dict[str, TensorInfo]


class Inspection(Document):
    """What `inspect` found."""

    kind: Literal["Inspection"]
    path: str
    checkpoints: list[FoundCheckpoint]
    shown: ShownCheckpoint


class BestClass(Part):
    """A class and its probability."""

    index: int
    name: str
    probability: float


class Prediction(Part):
    """The most probable classes of an image, the best first; none if `error` is set."""

    image: str
    classes: list[BestClass]
    error: str | None


class PredictionList(Document):
    """What `predict` says about each image."""

    kind: Literal["PredictionList"]
    weights: str
    items: list[Prediction]


class Export(Document):
    """The file that `export` wrote, and how far it differs from the network on sample images."""

    kind: Literal["Export"]
    path: str
    bytes: int
    images: int = Field(description="The number of images on which it was compared.")
    largest_difference: float = Field(description="The largest difference of a probability from the network's.")


RankTableDocument = of_dataclass(
    "RankTable",
    "A valid rank table: `ranktable check` and `ranktable show`. `ownRanks` are this pod's, null outside of its pods.",
    RankTable,
    path=str,
    world_size=int,
    own_ranks=list[int] | None,
    remarks=list[str],
)

OF_THE_LAUNCHER = (
    *(Submission, SubmitCheck, Job, JobHistory, JobList, LiveJobList, Explanation, JobDeleted, Report, Fetched, Bundle),
    Profile,
    *(LogLine, LogGap, LogLoss, FindingList, Config, Error),
)
OF_THE_TRAINER = (DataVerification, Environment, ProofDocument, Inspection, RankTableDocument, PredictionList, Export)

_INTRODUCTION = """\
# JSON

`make generate` writes this page and the JSON schemas in [schema](schema), one for each kind.

With `--json`, `python -m launcher` and `python -m trainer` print one JSON object on standard output, with
`apiVersion: pnas/v1` and a `kind`. `submit` and `logs` print one object in each line. Notes and warnings stay on
standard error. The exit codes are the same.

An error is an object of kind Error on standard output, unless the result is there already: `wait` prints the Job,
whether it failed or not. The line on standard error stays.

Each schema describes the documents of this version exactly. Each field is always there, and null stands for what is
unknown. Later versions can add fields. `apiVersion` changes when a field changes its meaning or is removed. Times are
ISO 8601 in UTC. Names that are data stay as they are: settings, tensors, variables, and the fields of the log's lines
in `step`, `progress`, `evaluation`, `time` and `result`. `launcher render --json` prints a List of Kubernetes objects.
"""


_METRICS = """\
## Rows of metrics.jsonl

Each line of a run's `metrics.jsonl` is an object with its `kind`. Later versions can add fields and kinds. All but
`step` have the `time` at which they were written, and null stands for a number that JSON lacks. A continued run keeps
the rows about steps that its checkpoint has; the other rows move to `metrics-replaced.jsonl`."""
_METRIC_ROWS = (
    ("`step`", "A step.", "`epoch`, `step`, `global_step`, `loss`, `lr`"),
    (
        "`progress`",
        "The steps since the row before, up to `global_step`. From the second row of a process on, how far the run is: "
        "`done` is in percent, and in nine of ten simulated runs the time left was between its two bounds.",
        "`global_step` (not in --mode eval), `fps`, `top1`, `done`, `left_s`, `left_low_s`, `left_high_s`",
    ),
    (
        "`time`",
        "Where the wall time since the row before went, up to step `global_step`: the mean of all ranks but the "
        "slowest. `limit` is the largest part. Of several ranks, the slowest is named, by how many percent it is "
        "`slower` than the others' median without their waiting for peers, and its own largest part.",
        "`global_step`, `data_s`, `host_s`, `device_s`, `peers_s`, `saving_s`, `evaluation_s`, `limit`, "
        "`slowest_rank`, `slower`, `slowest_part`",
    ),
    ("`eval`", "An evaluation.", "`epoch`, `top1`, `top5`, `loss`, `images`"),
    ("`attempt`", "An attempt begins; `ended` tells of the one before.", "the fields of `attempt.json`, `ended`"),
    ("`corruption`", "The ranks' states differed.", "the place, the ranks, and what the run did"),
    (
        "`hardware`",
        "A device of a node, or its host, some seconds after the start and then every 30 s (docs/ascend.md). It stays "
        "when a run is continued.",
        "`node`, `device`, `rank`, `name`, `health`, `use_percent`, `memory_used_mib`, `memory_mib`, `temperature_c`, "
        "`power_w`, `ecc_corrected`, `ecc_uncorrected`",
    ),
)


def files() -> dict[Path, str]:
    """Return the text of the page and of each schema."""
    schemas = {FOLDER / f"{kind}.json": pretty_json(schema) + "\n" for kind, schema in SCHEMAS.items()}
    page = [
        _INTRODUCTION,
        *_table("Kinds of the launcher", OF_THE_LAUNCHER),
        *_table("Kinds of the trainer, which prints Error too", OF_THE_TRAINER),
        *table(_METRICS, ("kind", "what it is", "fields"), _METRIC_ROWS),
    ]
    return {PAGE: "\n".join(page), **schemas}


def _table(title: str, models: Sequence[type[Document]]) -> Iterator[str]:
    rows = [
        (
            f"[{kind_of(model)}](schema/{kind_of(model)}.json)",
            " ".join((model.__doc__ or "").split()),
            ", ".join(
                f"`{field.alias}`" for name, field in model.model_fields.items() if name not in Document.model_fields
            ),
        )
        for model in models
    ]
    yield from table(f"## {title}", ("kind", "what it is", "fields"), rows)


def kind_of(model: type[Document]) -> str:
    """Return the kind of a document."""
    return str(get_args(model.model_fields["kind"].annotation)[0])


def _schema(model: type[Document]) -> dict[str, Any]:
    schema = model.model_json_schema(by_alias=True)
    for part in (schema, *schema.get("$defs", {}).values()):
        _close(part)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _close(part: dict[str, Any]) -> None:
    """Give the fields of a dataclass their names in JSON, and require each field."""
    if "properties" in part:
        if part.get("additionalProperties") is not True:
            part["properties"] = {camel_case(name): field for name, field in part["properties"].items()}
            part["additionalProperties"] = False
        part["required"] = list(part["properties"])
    for field in part.get("properties", {}).values():
        for key in ("title", "default"):
            field.pop(key, None)


SCHEMAS = {kind_of(model): _schema(model) for model in (*OF_THE_LAUNCHER, *OF_THE_TRAINER)}
