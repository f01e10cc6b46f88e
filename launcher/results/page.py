"""The report of one run, or of two side by side, as one HTML page with charts. Pure: values in, text out."""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from markupsafe import Markup

from launcher.jobs import JobEvent
from launcher.output.progress import parse_pairs
from launcher.results.charts import Chart, Line, Point, draw
from launcher.results.run_folder import Row, RunData, number
from trainer.shared.attempts import time_of, timestamp
from trainer.shared.durations import format_duration
from trainer.shared.pages import page_template

MADE_BY = "pnas report"
"""Marks the pages of this program, which the next report may replace."""
_TEMPLATE = Path(__file__).parent / "templates/report.html.j2"
_COLORS = 8
# The kind of rows about where the time goes.
_TIME = "time"
_UNITS = {"percent": "%", "mib": "MiB", "c": "°C", "w": "W", "s": "s", "hz": "Hz"}
# Say where a row belongs, and are not values.
_PLACES = frozenset(("kind", "time", "global_step", "epoch", "step", "rank", "local_rank", "node", "device", "attempt"))
# Differ in every run, so that they say nothing about two runs.
_OF_ONE_RUN = frozenset(("run_name", "output", "resume", "node_rank", "command", "config_sha256", "started"))


@dataclass(frozen=True)
class Subject:
    """A run to report, and what the launcher knows of its job.

    Attributes:
        phase, reason: of the job; of its last attempt if only its folder is known.
        facts: the lines of the summary.
        pods: the cluster's settings of the job.
        origins: the layer that gave each setting that is no default; None if no job's record is known.
        told: the trainer's settings as the launcher knew them.
        again: the command that continues the run; empty if there is nothing to continue.
    """

    name: str
    run: RunData
    phase: str
    reason: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    pods: Mapping[str, Any] = field(default_factory=dict)
    origins: Mapping[str, str] | None = None
    told: Mapping[str, Any] = field(default_factory=dict)
    events: Sequence[JobEvent] = ()
    again: str = ""


class _Figure(NamedTuple):
    chart: Chart
    svg: Markup


class _Setting(NamedTuple):
    name: str
    values: Sequence[str]
    origins: Sequence[str]

    @property
    def differs(self) -> bool:
        """Whether two runs have different values."""
        return len(set(self.values)) > 1

    @property
    def is_default(self) -> bool:
        """Whether no layer gave it."""
        return set(self.origins) <= {"default", ""}


class _TimePart(NamedTuple):
    name: str
    duration: str
    percent: str


def report_page(subjects: Sequence[Subject], *, now: float) -> str:
    """Return the page about one run, or about two that are compared.

    Args:
        now: seconds since 1970.
    """
    settings = list(_settings(subjects))
    provenance = list(_provenance(subjects))
    return page_template(_TEMPLATE).render(
        made_by=MADE_BY,
        title=" and ".join(subject.name for subject in subjects),
        subjects=subjects,
        comparing=len(subjects) > 1,
        now=timestamp(now),
        results=_results(subjects),
        figures=[_Figure(chart, draw(chart)) for chart in _charts(subjects) if not chart.is_empty],
        times=[(subject, _time_parts(subject.run)) for subject in subjects],
        attempts=[(subject, list(map(_attempt, subject.run.attempts))) for subject in subjects],
        events=[(subject, [(timestamp(event.time), event.text) for event in subject.events]) for subject in subjects],
        different=[row for row in (*settings, *provenance) if row.differs and row.name not in _OF_ONE_RUN],
        chosen=[row for row in settings if not row.is_default],
        defaults=[row for row in settings if row.is_default],
        provenance=provenance,
    )


def _results(subjects: Sequence[Subject]) -> list[tuple[str, Sequence[str]]]:
    """Return each line of the summary with its value in each run."""
    names = dict.fromkeys(name for subject in subjects for name in _facts(subject))
    return [(name, [_facts(subject).get(name, "-") for subject in subjects]) for name in names]


def _facts(subject: Subject) -> dict[str, str]:
    run = subject.run
    last, best = run.evaluations[-1] if run.evaluations else None, run.best
    facts = {
        "top-1": _percent(last, "top1"),
        "top-5": _percent(last, "top5"),
        "best top-1": _percent(best, "top1") + ("" if best is None else _after_epoch(best)),
        "speed": f"{run.figures['ActualFPS']} images/s" if "ActualFPS" in run.figures else _last_speed(run),
        "steps": f"{run.steps[-1][0] + 1:,}" if run.steps else "",
        "loss": f"{run.steps[-1][1]:.5g}" if run.steps else "",
    }
    return {name: text for name, text in {**facts, **subject.facts}.items() if text}


def _percent(row: Row | None, name: str) -> str:
    value = None if row is None else number(row, name)
    return "" if value is None else f"{value:.4g} %"


def _after_epoch(row: Row) -> str:
    epoch = number(row, "epoch")
    # Epochs count from 1 here, as people count.
    return "" if epoch is None else f" after epoch {epoch + 1:.0f}"


def _last_speed(run: RunData) -> str:
    speeds = [fps for row in run.progress if (fps := number(row, "fps")) is not None]
    return f"{speeds[-1]:.4g} images/s lately" if speeds else ""


def _charts(subjects: Sequence[Subject]) -> Iterator[Chart]:
    """Yield the charts; one of values that a run does not record is empty."""
    runs = [subject.run for subject in subjects]
    marks = [place for row in runs[0].evaluations if (place := number(row, "global_step")) is not None]
    marks = marks if len(runs) == 1 else []
    names = [""] if len(runs) == 1 else [f"{subject.name} " for subject in subjects]

    def lines(label: str, points: Callable[[RunData], Sequence[Point]], *, series: int = 0) -> list[Line]:
        return [
            Line(f"{name}{label}".strip(), points(run), color=2 * series + place, dots=series > 0, dashed=place > 0)
            for place, (name, run) in enumerate(zip(names, runs, strict=True))
        ]

    for title, field_name in (("Loss", "loss"), ("Top-1 accuracy, %", "top1")):
        training = _losses if field_name == "loss" else partial(_points, kind="progress", field_name="top1")
        evaluation = partial(_points, kind="evaluations", field_name=field_name)
        both = [*lines("training", training), *lines("evaluation", evaluation, series=1)]
        yield Chart(title, both, marks=marks, may_be_log=field_name == "loss")
    yield Chart("Learning rate", lines("", lambda run: [(step, lr) for step, _, lr in run.steps]))
    yield Chart("Speed, images/s", lines("", partial(_points, kind="progress", field_name="fps")), marks=marks)
    if len(runs) == 1:
        yield Chart("Share of the time, %", _time_shares(runs[0].others.get(_TIME, ())))
        for kind, rows in sorted(runs[0].others.items()):
            if kind != _TIME:
                yield from _other_charts(kind, rows)


def _losses(run: RunData) -> Sequence[Point]:
    return [(step, loss) for step, loss, _ in run.steps]


def _points(run: RunData, kind: Literal["progress", "evaluations"], field_name: str) -> Sequence[Point]:
    places = ((number(row, "global_step"), number(row, field_name)) for row in getattr(run, kind))
    return [(x, y) for x, y in places if x is not None and y is not None]


def _seconds(row: Row) -> dict[str, float]:
    """Return the seconds of each part of a row about where the time went."""
    seconds = {name.removesuffix("_s"): number(row, name) for name in row if name.endswith("_s")}
    return {name: value for name, value in seconds.items() if value is not None and value >= 0}


def _time_shares(rows: Sequence[Row]) -> list[Line]:
    points: dict[str, list[Point]] = {}
    for row in rows:
        step, seconds = number(row, "global_step"), _seconds(row)
        total = sum(seconds.values())
        if step is not None and total > 0:
            for name, value in seconds.items():
                points.setdefault(name, []).append((step, 100 * value / total))
    return [Line(name, own, color=place % _COLORS) for place, (name, own) in enumerate(points.items())]


def _time_parts(run: RunData) -> list[_TimePart]:
    """Return the parts of the whole run's time, the largest first."""
    sums: dict[str, float] = {}
    for row in run.others.get(_TIME, ()):
        for name, value in _seconds(row).items():
            sums[name] = sums.get(name, 0.0) + value
    total = sum(sums.values())
    parts = sorted(sums.items(), key=lambda part: -part[1]) if total > 0 else []
    return [_TimePart(name, format_duration(value), f"{100 * value / total:.1f}") for name, value in parts]


def _other_charts(kind: str, rows: Sequence[Row]) -> Iterator[Chart]:
    """Yield a chart of each number of a kind of rows, such as those about hardware, with a line for each device."""
    times = [moment for row in rows if (moment := time_of(row.get("time"))) is not None]
    several_nodes = len({row.get("node") for row in rows if isinstance(row.get("node"), int | str)}) > 1
    lines: dict[str, dict[str, list[Point]]] = {}
    for row in rows:
        moment = time_of(row.get("time"))
        x = number(row, "global_step") if moment is None else (moment - times[0]) / 60
        device = row.get("device") or (f"rank {row['rank']}" if "rank" in row else "")
        source = f"node {row.get('node')} {device}" if several_nodes else str(device)
        for name in row:
            y = None if name in _PLACES else number(row, name)
            if x is not None and y is not None:
                lines.setdefault(name, {}).setdefault(source, []).append((x, y))
    for name, sources in lines.items():
        own = [Line(source, points, color=place % _COLORS) for place, (source, points) in enumerate(sources.items())]
        yield Chart(f"{kind}: {_words(name)}", own, x_label="minutes" if times else "step")


def _words(name: str) -> str:
    """Return a field's name as words: `hbm_mib` as `hbm, MiB`."""
    words, _, unit = name.rpartition("_")
    return f"{words.replace('_', ' ')}, {_UNITS[unit]}" if words and unit in _UNITS else name.replace("_", " ")


def _attempt(record: Mapping[str, Any]) -> dict[str, str]:
    """Return what the table shows of an attempt."""
    cause = str(record.get("cause") or "")
    # The cause of a worker's failure is in logfmt.
    fields = parse_pairs(cause) if cause.startswith(("rank=", "cause=")) else {"cause": cause}
    rank = f"rank {fields['rank']} on {fields.get('device', '?')}: " if "rank" in fields else ""
    gap_s = number(record, "gap_s")
    return {
        "attempt": str(record["attempt"]),
        "node": str(record.get("node") or record.get("host") or "-"),
        "started": str(record.get("started") or "-"),
        "ended": str(record.get("ended") or "-"),
        "from": str(record.get("checkpoint") or "the beginning"),
        "pause before": "-" if gap_s is None else format_duration(gap_s),
        "steps": str("-" if record.get("steps") is None else record["steps"]),
        "end": str(record.get("outcome") or "no end is recorded: it runs, or was killed"),
        "cause": f"{rank}{fields.get('cause') or ''}" or "-",
    }


def _settings(subjects: Sequence[Subject]) -> Iterator[_Setting]:
    names = dict.fromkeys(name for subject in subjects for name in (*subject.run.settings, *subject.pods))
    for name in names:
        values = [{**subject.pods, **subject.run.settings} for subject in subjects]
        yield _Setting(
            name,
            [_value(own[name]) if name in own else "-" for own in values],
            [_origin(subject, name, own.get(name)) for subject, own in zip(subjects, values, strict=True)],
        )


def _origin(subject: Subject, name: str, value: object) -> str:
    """Return where a setting comes from; empty if that is not recorded."""
    if subject.origins is None:
        return ""
    if name in subject.origins:
        return subject.origins[name]
    # The trainer itself counts devices, and takes settings from weights and checkpoints.
    is_told = name in subject.pods or name not in subject.told or subject.told[name] == value
    return "default" if is_told else "the trainer"


def _value(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _provenance(subjects: Sequence[Subject]) -> Iterator[_Setting]:
    """Yield each fact of the runs' provenance but the settings, which have their own table."""
    tables = [dict(_flat(subject.run.provenance)) for subject in subjects]
    for name in dict.fromkeys(name for table in tables for name in table):
        yield _Setting(name, [table.get(name, "-") for table in tables], ["" for _ in tables])


def _flat(table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in table.items():
        if isinstance(value, dict) and name != "config":
            yield from ((f"{name} {key}", _value(item)) for key, item in value.items())
        elif name == "command" and isinstance(value, list):
            yield name, shlex.join(map(str, value))
        elif name != "config":
            yield name, _value(value)
