"""A run's folder as values: curves, evaluations, attempts, settings, provenance, and what is wrong with its files.

A report must be possible of any run: one that runs, was killed, or whose files are damaged. So nothing here raises an
error for a damaged file; `problems` says what is left out of the report.
"""

import json
import math
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from trainer.shared.attempts import ATTEMPT_FILE, attempt_file, attempt_history
from trainer.shared.files import read_file

Row = Mapping[str, Any]

_METRICS = "metrics.jsonl"
_SETTINGS = re.compile(r"(config|provenance)(?:-(\d+))?\.(?:yaml|json)")
_RESULT_FILE = re.compile(r"\w+_(acc|perf)\.log")
# The kinds of rows that have their own place; a later release can add others.
_OWN_KINDS = frozenset(("step", "progress", "eval", "corruption", "attempt"))


@dataclass
class RunData:
    """All that a report shows of a run.

    Attributes:
        steps: (step of the run, loss, learning rate) of each step, in order; nan stands for a value that JSON lacks.
        progress: rows about several steps, with the time, `fps` and `top1`.
        evaluations: the rows of evaluations, each with its `global_step`, the last step before it.
        attempts: what is known of each attempt, oldest first.
        corruptions: rows about ranks whose state was wrong.
        others: the rows of each other kind, such as those about hardware.
        settings: the settings with which the latest attempt ran.
        provenance: of the latest attempt.
        figures: the result file in the seed's format; empty without one.
        problems: what could not be read, in words.
    """

    folder: Path
    steps: list[tuple[int, float, float]] = field(default_factory=list)
    progress: list[Row] = field(default_factory=list)
    evaluations: list[Row] = field(default_factory=list)
    attempts: list[dict[str, Any]] = field(default_factory=list)
    corruptions: list[Row] = field(default_factory=list)
    others: dict[str, list[Row]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def best(self) -> Row | None:
        """The evaluation with the best top-1; the first one of several."""
        return max(self.evaluations, key=lambda row: number(row, "top1") or -1.0, default=None)


def is_record(path: str) -> bool:
    """Return whether `read_run` reads this file of a run's folder."""
    return path == _METRICS or any(pattern.fullmatch(path) for pattern in (_SETTINGS, _RESULT_FILE, ATTEMPT_FILE))


def number(row: Row, name: str) -> float | None:
    """Return a field as a finite number; None for another value."""
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # JSON's integers have no limit.
    return float(value) if abs(value) <= sys.float_info.max else None


def read_run(folder: Path) -> RunData:
    """Read a run's folder."""
    run = RunData(folder)
    _read_metrics(run)
    run.attempts = attempt_history(folder)
    names = _names(run)
    latest = max((int(match[2] or 1) for name in names if (match := _SETTINGS.fullmatch(name))), default=1)
    # An attempt that ended before its workers began has settings and no provenance.
    for attempt in range(latest, 0, -1):
        if not run.provenance:
            run.provenance = _read_table(run, attempt_file(folder / "provenance.json", attempt))
    run.settings = _read_settings(run, attempt_file(folder / "config.yaml", latest))
    results = sorted(name for name in names if _RESULT_FILE.fullmatch(name))
    if results:
        lines = (line.partition("=") for line in (_text(run, folder / results[0]) or "").splitlines())
        run.figures = {name.strip(): value.strip() for name, _, value in lines if value}
    return run


def _names(run: RunData) -> Sequence[str]:
    try:
        return [path.name for path in run.folder.iterdir()]
    except OSError as error:
        run.problems.append(f"{run.folder}: cannot be read: {error.strerror}")
        return ()


def _text(run: RunData, path: Path) -> str | None:
    """Return a file's text; None if there is no such file, or if it cannot be read."""
    try:
        return read_file(path).decode("utf-8", "replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        run.problems.append(f"{path.name}: cannot be read: {error.strerror}")
        return None


def _read_table(run: RunData, path: Path) -> Mapping[str, Any]:
    text = _text(run, path)
    if text is None:
        return {}
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        run.problems.append(f"{path.name}: damaged, and left out")
        return {}
    return table


def _read_settings(run: RunData, path: Path) -> Mapping[str, Any]:
    """Return the settings of `config.yaml`; the provenance has them too, perhaps an older attempt's."""
    text = _text(run, path)
    try:
        table = None if text is None else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        table = ()
    if isinstance(table, dict):
        return {str(name): value for name, value in table.items()}
    if table is not None:
        run.problems.append(f"{path.name}: damaged, and left out")
    settings = run.provenance.get("config")
    return settings if isinstance(settings, dict) else {}


def _read_metrics(run: RunData) -> None:
    text = _text(run, run.folder / _METRICS)
    if text is None:
        return
    rows: defaultdict[str, list[Row]] = defaultdict(list)
    last_steps: dict[int, int] = {}
    damaged = 0
    for row in _rows(text):
        kind = None if row is None else row.get("kind")
        if row is None or not isinstance(kind, str):
            damaged += 1
        elif kind == "step":
            step, epoch = row.get("global_step"), row.get("epoch")
            if isinstance(step, int):
                run.steps.append((step, _or_nan(row, "loss"), _or_nan(row, "lr")))
                if isinstance(epoch, int):
                    last_steps[epoch] = step
            else:
                damaged += 1
        else:
            rows[kind].append(row)
    run.progress, run.corruptions = rows["progress"], rows["corruption"]
    run.evaluations = [_placed(row, last_steps) for row in rows["eval"]]
    run.others = {kind: own for kind, own in rows.items() if kind not in _OWN_KINDS}
    if damaged:
        run.problems.append(f"{_METRICS}: {damaged:,} damaged line{'' if damaged == 1 else 's'} left out")


def _rows(text: str) -> Iterator[Row | None]:
    """Yield the table of each line; None for a damaged one. The end of a run that goes on can be half a line."""
    *lines, _half = text.split("\n")
    for line in filter(str.strip, lines):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        yield row if isinstance(row, dict) else None


def _placed(row: Row, last_steps: Mapping[int, int]) -> Row:
    epoch = row.get("epoch")
    return {"global_step": last_steps.get(epoch), **row} if isinstance(epoch, int) else row


def _or_nan(row: Row, name: str) -> float:
    value = number(row, name)
    return math.nan if value is None else value
