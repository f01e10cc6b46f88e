"""A job's progress, as its lines tell it, and its lines in a terminal: one for the job, one for each device. Pure.

The trainer's progress lines are words and `key=value` pairs (logfmt), so that people and programs read the same line.
The terminal display, `status` and the summary all read them here.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from launcher.output.lines import LogLine
from trainer.shared.durations import format_duration
from trainer.shared.text import visible

Value = int | float | str

_KINDS = ("step", "eval", "progress", "time", "result", "failed", "error")
_FIRST_WORD = re.compile(rb"(%s) " % "|".join(_KINDS).encode())
_INTERESTING = re.compile(_FIRST_WORD.pattern + rb"|error: ")
_INTEGER = re.compile(r"[+-]?\d{1,18}")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan|[+-]?inf", re.IGNORECASE)
_PAIR = re.compile(r'([A-Za-z_]\w*)=("(?:[^"\\]|\\.)*"|\S*)')
_BAR_WIDTH, _SHORTEST_BAR = 16, 6
_BLOCKS, _SIGNS = ("█", "░"), ("#", "-")
# The columns that a narrow terminal leaves out, in this order; columns that are unknown here go before them.
_OPTIONAL = ("lr", "top1", "epoch", "bar", "loss", "fps", "step", "left", "done")
_FIRST = ("done", "bar", "left")
"""The columns that a job's line begins with."""
_WAITS = {
    "data": "waits for data",
    "host": "waits for the host",
    "device": "computes",
    "peers": "waits for peers",
    "saving": "saves",
    "evaluation": "evaluates",
}
DEVICE_FIGURES = {
    "rates": "{} images/s",
    "waits": "{}",
    "use_percent": "use {} %",
    "memory_percent": "memory {} %",
    "temperature_c": "{} C",
    "power_w": "{} W",
}
"""Fields of the line `progress` with a value for each rank, and how a person reads one."""
_PARTS = {"data": "loading data", "host": "the host", "device": "computing", "saving": "saving"} | {
    "evaluation": "evaluating"
}
LEAST_SLOWER = 5.0
"""Percent by which a rank must be slower than the others to be worth a line."""


@dataclass(frozen=True)
class ProgressLine:
    """One progress line. `text` is all after the first word."""

    kind: str
    fields: Mapping[str, Value]
    text: str

    def number(self, key: str) -> float | None:
        """Return the field as a number; None if the line does not have it, or if it is text, nan or infinite."""
        value = self.fields.get(key)
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def parse_progress(text: bytes) -> ProgressLine | None:
    """Return a line's text as a progress line; None if it is an ordinary line."""
    if not _FIRST_WORD.match(text):
        return None
    kind, _, rest = text.decode("utf-8", "replace").strip().partition(" ")
    return ProgressLine(kind, {} if kind == "error" else parse_pairs(rest), rest)


def parse_pairs(text: str) -> dict[str, Value]:
    """Return the `key=value` pairs of a line."""
    return {key: _value(value) for key, value in _PAIR.findall(text)}


def _value(text: str) -> Value:
    if text.startswith('"'):
        try:
            return str(json.loads(text))
        except ValueError:
            return text.strip('"')
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _NUMBER.fullmatch(text) else text


@dataclass
class JobProgress:
    """The latest state of a job, from its lines in order."""

    evaluation: ProgressLine | None = None
    ahead: ProgressLine | None = None
    """The time left, what limits the job, and each rank's figures."""
    times: ProgressLine | None = None
    """Where the time went, at the end."""
    result: ProgressLine | None = None
    failure: ProgressLine | None = None
    error: ProgressLine | None = None
    devices: dict[int, str] = field(default_factory=dict)
    """The name of each rank's device, also of a rank whose lines are hidden, as another rank has said the same."""
    # Only the last of many step lines is ever looked at, so each is parsed only then.
    _steps: dict[int, bytes] = field(default_factory=dict)

    def update_all(self, lines: Iterable[LogLine]) -> "JobProgress":
        """Take all `lines` into account; of a million lines only a few tell progress."""
        for line in lines:
            if line.writer.rank is not None and line.writer.rank not in self.devices:
                self.devices[line.writer.rank] = line.writer.device or "?"
            if _INTERESTING.match(line.text):
                self._update(line)
        return self

    def _update(self, line: LogLine) -> None:
        text = line.text
        if line.number is None:
            # Before it has workers, the trainer writes lines without tags, of which only an error counts.
            if text.startswith(b"error: "):
                self.error = self.error or ProgressLine("error", {}, text[7:].decode("utf-8", "replace").strip())
        elif text.startswith(b"step "):
            if line.writer.rank is not None:
                self._steps[line.writer.rank] = text
        elif (progress := parse_progress(text)) is not None:
            self._keep(progress)

    def _keep(self, line: ProgressLine) -> None:
        if line.kind == "eval":
            self.evaluation = line
        elif line.kind == "progress":
            self.ahead = line
        elif line.kind == "time":
            self.times = line
        elif line.kind == "result":
            self.result = line
        elif line.kind == "failed":
            # The first failure is the cause of the later ones.
            self.failure = self.failure or line
        elif line.kind == "error":
            self.error = self.error or line

    def step(self, rank: int) -> ProgressLine | None:
        """Return the latest step of a rank."""
        text = self._steps.get(rank)
        return None if text is None else parse_progress(text)

    @property
    def latest_step(self) -> ProgressLine | None:
        """The step that has come furthest."""
        steps = [step for rank in self._steps if (step := self.step(rank)) is not None]
        return max(steps, key=lambda step: (step.number("epoch") or 0, step.number("step") or 0), default=None)

    @property
    def has_begun(self) -> bool:
        """Whether the job has done any of its work."""
        return bool(self._steps or self.ahead or self.evaluation or self.result)

    @property
    def device_figures(self) -> list[dict[str, str]]:
        """The figures of each rank's device in the latest line `progress`, by their names there, without unknown ones.

        They are texts of the log, escaped.
        """
        if self.ahead is None:
            return []
        texts = {name: visible(str(self.ahead.fields.get(name, ""))).split() for name in DEVICE_FIGURES}
        ranks = range(max(map(len, texts.values())))
        return [
            {name: values[rank] for name, values in texts.items() if rank < len(values) and values[rank] != "-"}
            for rank in ranks
        ]

    @property
    def cause(self) -> str | None:
        """Why the job failed, in one line."""
        if self.failure is not None:
            fields = self.failure.fields
            cause = fields.get("cause", self.failure.text)
            return f"rank {fields['rank']} on {fields.get('device', '?')}: {cause}" if "rank" in fields else str(cause)
        return None if self.error is None else self.error.text


def live_lines(
    progress: JobProgress, devices: Mapping[int, str], texts: Mapping[int, str], width: int, *, ascii_only: bool = False
) -> list[str]:
    """Return the job's line and one line per device, each at most `width` columns wide.

    `job  12.3 %  ██░░░░░░  2 h 3 min left  epoch 4/10  44/88  loss 0.31 …` and `rank 3 npu:3  45.2 images/s  waits for
    data  use 93 %  memory 61 %  71 C  251 W`: in a narrow terminal the least important columns go first.

    Args:
        devices: the name of each rank's device.
        texts: each rank's latest text that is no step, for the time before its first step.
        ascii_only: the terminal has only ASCII's letters.
    """
    if not devices:
        return []
    labels = {rank: f"rank {rank} {device}" for rank, device in sorted(devices.items())}
    label_width = max(map(len, labels.values()))
    begun = progress.latest_step is not None or progress.ahead is not None
    figures = _device_texts(progress.device_figures)
    lines = [_job_line(progress, "job".ljust(label_width), width, ascii_only)] if begun else []
    for rank, label in labels.items():
        step = progress.step(rank)
        text = figures.get(rank) or (texts.get(rank, "") if step is None else step_cells(step).get("step", ""))
        lines.append(f"{label.ljust(label_width)}  {text}".rstrip()[:width])
    return lines


def time_left(ahead: ProgressLine | None) -> str:
    """Return the time that a job still takes, with its bounds; empty if that is unknown."""
    bounds = [None if ahead is None else ahead.number(name) for name in ("left_s", "left_low_s", "left_high_s")]
    texts = [format_duration(seconds) for seconds in bounds if seconds is not None]
    return f"{texts[0]} ({texts[1]} to {texts[2]})" if len(texts) == 3 else ""


def slowest_rank(line: ProgressLine | None) -> str:
    """Return the rank for which the others wait, and by how much it is slower; empty if none is."""
    rank, percent = (None, None) if line is None else (line.number("slowest_rank"), line.number("slower"))
    if line is None or rank is None or percent is None or percent < LEAST_SLOWER:
        return ""
    part = line.fields.get("slowest_part")
    return f"rank {rank:.0f}, {percent:.3g} % slower than the others, mostly by {_PARTS.get(str(part), 'itself')}"


def _job_line(progress: JobProgress, label: str, width: int, ascii_only: bool) -> str:
    step = progress.latest_step
    # The last line about it is from before the end.
    ahead = None if progress.result is not None else progress.ahead
    left = None if ahead is None else ahead.number("left_s")
    done = 100.0 if progress.result is not None else None if ahead is None else ahead.number("done")

    def cells(bar: int) -> dict[str, str]:
        of_step = {} if step is None else step_cells(step, bar=bar, ascii_only=ascii_only)
        if done is not None:
            of_step |= {"bar": _bar(done / 100, bar, ascii_only), "done": f"{done:.1f} %"}
        if left is not None:
            of_step["left"] = f"{format_duration(left)} left"
        if ahead is not None and (fps := ahead.number("fps")) is not None:
            of_step["fps"] = f"{fps:.4g} images/s"
        if hosts := _host_use(ahead):
            of_step["host"] = hosts
        return {name: of_step[name] for name in (*_FIRST, *of_step) if name in of_step}

    names, rest = _columns_that_fit([{"label": label, **cells(_SHORTEST_BAR)}], width)
    row = cells(min(_BAR_WIDTH, _SHORTEST_BAR + rest))
    return "  ".join([label, *(row[name] for name in names)]).rstrip()[:width]


def _device_texts(devices: Sequence[Mapping[str, str]]) -> dict[int, str]:
    """Return the speed of each rank without waiting for others, what it waits for, and its hardware; in columns."""
    columns = [
        [text.format(_WAITS.get(figures[name], figures[name])) if name in figures else "" for figures in devices]
        for name, text in DEVICE_FIGURES.items()
    ]
    widths = [max(map(len, column), default=0) for column in columns]
    rows = (
        [f"{cell:{align}{width}}" for cell, align, width in zip(row, "><>>>>", widths, strict=True) if width]
        for row in zip(*columns, strict=True)
    )
    return {rank: "  ".join(row).rstrip() for rank, row in enumerate(rows)}


def _host_use(ahead: ProgressLine | None) -> str:
    """Return the use of the busiest host; empty if it is unknown."""
    texts = [] if ahead is None else str(ahead.fields.get("host_use_percent", "")).split()
    values = [float(text) for text in texts if _NUMBER.fullmatch(text)]
    return f"host {max(values):.0f} %" if values else ""


def _bar(share: float, width: int, ascii_only: bool) -> str:
    full, empty = _SIGNS if ascii_only else _BLOCKS
    filled = round(width * min(max(share, 0.0), 1.0))
    return full * filled + empty * (width - filled)


def step_cells(step: ProgressLine, *, bar: int = _BAR_WIDTH, ascii_only: bool = False) -> dict[str, str]:
    """Return the columns of a step by their names. Epochs count from 1 here, as people count."""
    fields = {name: step.number(name) for name in step.fields if name != "time"}
    epoch, epochs, done, steps = (fields.pop(name, None) for name in ("epoch", "epochs", "step", "steps"))
    cells: dict[str, str] = {}
    if epoch is not None:
        cells["epoch"] = f"epoch {epoch + 1:.0f}" + ("" if epochs is None else f"/{epochs:.0f}")
    if done is not None and steps:
        cells["bar"] = _bar(done / steps, bar, ascii_only)
        cells["step"] = f"{done:.0f}/{steps:.0f}"
    for name, value in fields.items():
        text = visible(str(step.fields[name])) if value is None else f"{value:.4g}"
        cells[name] = f"{text} images/s" if name == "fps" else f"{name} {text}"
    return cells


def _columns_that_fit(rows: Sequence[Mapping[str, str]], width: int) -> tuple[list[str], int]:
    """Return the names of the columns to show, without `label`, and how many columns of the terminal are left."""
    widths: dict[str, int] = {}
    for row in rows:
        for name, text in row.items():
            widths[name] = max(widths.get(name, 0), len(text))
    known = ("label", *_OPTIONAL)
    optional = [
        *(name for name in reversed(widths) if name not in known),
        *(name for name in _OPTIONAL if name in widths),
    ]

    def left() -> int:
        return width - sum(widths.values()) - 2 * (len(widths) - 1)

    while optional and left() < 0:
        del widths[optional.pop(0)]
    return [name for name in widths if name != "label"], max(0, left())
