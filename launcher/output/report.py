"""Texts and JSON documents about jobs. Pure: values in, text out; the commands print it.

`where` is the options that find a job again, for the commands that a text names.
"""

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from launcher import PROGRAM
from launcher.jobs import KIND_NAMES, JobEvent, JobRef, JobState, Phase, PreflightFinding, Submitted
from launcher.output.progress import (
    DEVICE_FIGURES,
    JobProgress,
    ProgressLine,
    parse_pairs,
    slowest_rank,
    step_cells,
    time_left,
)
from launcher.recorded_spec import describe_network, known_spec
from trainer.shared.documents import document
from trainer.shared.durations import format_duration
from trainer.shared.text import visible

if TYPE_CHECKING:
    from launcher.output.follow import LogFollow
    from launcher.settings.spec import JobSpec

_SHOWN_LOSSES = 8
# A line of the trainer leaves out what it does not know.
_STEP = ("epoch", "epochs", "step", "steps", "loss", "lr", "fps", "top1", "skipped")
_EVALUATION = ("epoch", "epochs", "loss", "top1", "top5", "images", "best_top1", "best_epoch")
_LIMITS = ("limit", "slowest_rank", "slower", "slowest_part")
_PROGRESS = ("done", "left_s", "left_low_s", "left_high_s", "fps", *_LIMITS, *DEVICE_FIGURES, "host_use_percent")
_DEVICE_NUMBERS = {
    "imagesPerS": "rates",
    "usePercent": "use_percent",
    "memoryPercent": "memory_percent",
    "temperatureC": "temperature_c",
    "powerW": "power_w",
}
_SECONDS = ("data_s", "host_s", "device_s", "peers_s", "saving_s", "evaluation_s")
_TIME = (*_SECONDS, *_LIMITS)
_RESULT = (
    "mode",
    "loss",
    "top1",
    "top5",
    "images",
    "best_top1",
    "best_epoch",
    "fps",
    "train_s",
    "wall_s",
    "memory_mib",
    "output",
)


def job_header(spec: "JobSpec", *, attempt: int, where: str, known: bool) -> str:
    """Return what was started, and how to come back to it.

    Args:
        known: whether the settings of the run are known here, and not only where it began.
    """
    train = spec.train
    checkpoint = "its newest valid checkpoint, if it has one" if train.resume == "auto" else str(train.resume)
    rows = {
        "job": spec.name if attempt == 1 else f"{spec.name}, attempt {attempt}",
        "resumes": checkpoint if spec.continues else "",
        "runs": _runs({"train": dict(train), "given": spec.given}),
        "data": str(train.data_path),
        "output": str(spec.output),
        "come back": follow_command(spec.name, where),
    }
    if not known:
        del rows["runs"], rows["data"]
    return _rows(rows)


def continuation(state: JobState, where: str) -> str:
    """Return the command that continues a job that ended before it was done; nothing for other jobs."""
    if not state.resumable:
        return ""
    # Without this option, submit would choose a backend by what is there now.
    kind = "" if "--backend " in where else f" --backend {state.ref.backend}"
    return f"{PROGRAM} submit --name {state.ref.name} --resume auto{kind}{where}"


def reattach_hint(name: str, where: str) -> str:
    """Return what to type after the launcher has detached from a job that still runs."""
    stop = f"{PROGRAM} cancel {name}{where}"
    return f"job {name} goes on. Come back with `{follow_command(name, where)}`, stop it with `{stop}`."


def follow_command(name: str, where: str) -> str:
    """Return the command that follows a job."""
    return f"{PROGRAM} logs {name} -f{where}"


def summary(state: JobState, reading: "LogFollow", *, now: float, where: str) -> str:
    """Return how the job ended: outcome, accuracy, speed, time, the line counts of its log, and where its files are."""
    progress = reading.progress
    result = progress.result
    took = state.took_s(now)
    rows = {
        state.phase.value: state.ref.name + ("" if took is None else f" in {format_duration(took)}"),
        **_accuracy(_score(state, progress)),
        "speed": _speed(result),
        **_work(result),
        **_time_split(progress.times),
        "log": _log_counts(reading),
        "repeated": _hidden_lines(reading),
        "files": state.files or ("" if result is None else str(result.fields.get("output", ""))),
        **_take_home(state, where),
        "continue": continuation(state, where),
    }
    return _rows(rows)


def _take_home(state: JobState, where: str) -> dict[str, str]:
    """Return the commands that show and copy what a run has left."""
    if not state.files:
        return {}
    name = f"{state.ref.name}{where}"
    fetch = {"fetch": f"{PROGRAM} fetch {name}"} if state.ref.backend in KIND_NAMES else {}
    page = "proof.html among its files" if state.setting("mode") == "prove" else f"{PROGRAM} report {name}"
    return {"report": page, **fetch}


def incomplete_warning(reading: "LogFollow") -> str:
    """Return that lines are missing; empty if all lines came. The exit code is the job's, so this line must be seen."""
    missing = reading.demultiplexer.missing
    if not missing and not reading.losses:
        return ""
    known = f"{_count(missing, 'line')} {'is' if missing == 1 else 'are'} missing" if missing else ""
    unknown = "lines that have no known number may be missing" if reading.losses else ""
    return (
        f"warning: the log is not complete: {', and '.join(filter(None, (known, unknown)))}; "
        "the output folder has the lines of each device in console-*.log"
    )


def status_text(state: JobState, progress: JobProgress, events: Iterable[JobEvent], *, now: float, where: str) -> str:
    """Return everything that is known of one job, for the user."""
    took = state.took_s(now)
    step = progress.latest_step
    rows = {
        "job": state.ref.name,
        "attempt": str(state.attempt) if state.attempt > 1 else "",
        "phase": state.phase.value + (f": {state.reason}" if state.reason else ""),
        "runs": _runs(state.spec),
        "for": "" if took is None else format_duration(took),
        "step": ", ".join(text for name, text in step_cells(step).items() if name != "bar") if step else "",
        **_ahead(state, progress),
        **_time_split(progress.times if state.phase.ended else None),
        **_accuracy(_score(state, progress)),
        "speed": _speed(progress.result),
        "restarts": str(state.restarts) if state.restarts else "",
        "output": state.files or ("" if state.output is None else str(state.output)),
        "console": state.console,
        "command": shlex.join(state.command),
        "backend": state.ref.backend,
        "continue": continuation(state, where),
    }
    lines = [f"  {_clock(event.time)}  {visible(event.text)}" for event in events]
    return "\n".join([_rows(rows), "events", *lines])


def list_text(jobs: Sequence[tuple[JobState, JobProgress]], *, now: float) -> str:
    """Return one line per job."""
    rows = [("NAME", "PHASE", "WHERE", "MODE", "MODEL", "DEVICES", "STARTED", "TOOK", "DONE", "LEFT", "TOP-1", "BEST")]
    for state, progress in jobs:
        took = state.took_s(now)
        score = _score(state, progress)
        rows.append(
            (
                state.ref.name,
                state.phase.value,
                state.ref.backend,
                str(state.setting("mode") or "-"),
                str(state.setting("model") or "-"),
                _total(state),
                "-" if state.started is None else _clock(state.started),
                "-" if took is None else format_duration(took),
                *_done_and_left(state, progress),
                _percent(score, "top1"),
                _percent(score, "best_top1"),
            )
        )
    return columns(rows)


def unreadable_jobs(jobs: Iterable[tuple[JobState, JobProgress]]) -> list[str]:
    """Return a warning for each job that is there, but whose record cannot be read."""
    return [
        f"warning: job {state.ref.name} cannot be read: {state.reason}"
        for state, _ in jobs
        if state.phase is Phase.LOST and state.created is None
    ]


def job_document(state: JobState, progress: JobProgress) -> dict[str, Any]:
    """Return one job as a document of kind `Job`. Times are ISO 8601 in UTC."""
    local = {"command": list(state.command), "console": state.console} if state.console else {}
    return document("Job", **_head(state), spec=known_spec(state.spec), **_body(state, progress)) | {
        "details": {**local, **state.details}
    }


def list_document(jobs: Sequence[tuple[JobState, JobProgress]], problem: str | None = None) -> dict[str, Any]:
    """Return all jobs, in short, as a document of kind `JobList`.

    Args:
        problem: why other jobs are missing; None if none is.
    """
    items = [{**_head(state), **_settings(state), **_body(state, progress)} for state, progress in jobs]
    return document("JobList", items=items, problem=problem)


def live_document(jobs: Sequence[tuple[JobState, JobProgress]], problem: str | None) -> dict[str, Any]:
    """Return live jobs with their devices as a document of kind `LiveJobList`; `problem` is as for `list_document`."""
    listed = list_document(jobs, problem)
    items = [
        {**item, "devices": [_device(rank, figures) for rank, figures in enumerate(progress.device_figures)]}
        for item, (_, progress) in zip(listed["items"], jobs, strict=True)
    ]
    return {**listed, "kind": "LiveJobList", "items": items}


def _device(rank: int, figures: Mapping[str, str]) -> dict[str, Any]:
    line = ProgressLine("progress", parse_pairs(" ".join(f"{name}={text}" for name, text in figures.items())), "")
    numbers = {name: line.number(field) for name, field in _DEVICE_NUMBERS.items()}
    return {"rank": rank, "waits": figures.get("waits"), **numbers}


def _head(state: JobState) -> dict[str, Any]:
    return {"name": state.ref.name, "backend": state.ref.backend}


def _settings(state: JobState) -> dict[str, Any]:
    return {"mode": state.setting("mode"), "model": state.setting("model"), "npus": state.npus} | {
        "nodes": state.setting("nodes")
    }


def _body(state: JobState, progress: JobProgress) -> dict[str, Any]:
    status = {
        "attempt": state.attempt,
        "restarts": state.restarts,
        "phase": state.phase.value,
        "reason": state.reason or None,
        "exitCode": int(state.phase.exit_code) if state.phase.ended else None,
        "created": _iso(state.created),
        "started": _iso(state.started),
        "ended": _iso(state.ended),
        "step": _fields(progress.latest_step, _STEP),
        "progress": _fields(progress.ahead, _PROGRESS),
        "evaluation": _fields(progress.evaluation, _EVALUATION),
        "time": _fields(progress.times, _TIME),
        "result": _fields(progress.result, _RESULT),
    }
    return {"output": None if state.output is None else str(state.output), "status": status}


def submission_document(submission: Submitted, spec: "JobSpec") -> dict[str, Any]:
    """Return that a job was started, or found running, as a document of kind `Submission`."""
    return document(
        "Submission",
        name=spec.name,
        backend=spec.backend,
        attempt=submission.attempt,
        existed=submission.existed,
        output=str(spec.output),
        notes=list(submission.notes),
    )


def check_document(spec: "JobSpec", verdict: str, warnings: Iterable[str]) -> dict[str, Any]:
    """Return the verdict of `--dry-run` as a document of kind `SubmitCheck`."""
    return document("SubmitCheck", name=spec.name, backend=spec.backend, verdict=verdict, warnings=list(warnings))


def findings_document(findings: Sequence[PreflightFinding]) -> dict[str, Any]:
    """Return the findings of `doctor` as a document of kind `FindingList`."""
    return document("FindingList", items=[finding._asdict() for finding in findings])


def deleted_document(ref: JobRef, files: str) -> dict[str, Any]:
    """Return that a job was deleted, as a document of kind `JobDeleted`."""
    return document("JobDeleted", name=ref.name, backend=ref.backend, files=files or None)


def _rows(rows: Mapping[str, str]) -> str:
    """Return one line for each row that has a text."""
    width = max(len(name) for name, text in rows.items() if text)
    return "\n".join(f"{name:<{width}}  {visible(text)}" for name, text in rows.items() if text)


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Return the rows with aligned columns."""
    cells = [list(map(visible, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)


def _runs(spec: Mapping[str, Any]) -> str:
    train = spec.get("train")
    return f"{train.get('mode')}, {describe_network(train, spec.get('given', ()))}, {_devices(train)}" if train else ""


def _total(state: JobState) -> str:
    """Return the devices of the whole job."""
    nodes = state.setting("nodes") or 1
    return "-" if state.npus is None else str(state.npus) if nodes == 1 else f"{nodes}x{state.npus}"


def _devices(train: Mapping[str, Any]) -> str:
    kind, count = train.get("device", "auto"), train.get("npus")
    kind = "device" if kind == "auto" else kind
    if count is None:
        return "1 cpu" if kind == "cpu" else f"every {kind} of this machine"
    nodes = train.get("nodes") or 1
    return _count(count, kind) if nodes == 1 else f"{nodes} nodes of {_count(count, kind)}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _score(state: JobState, progress: JobProgress) -> ProgressLine | None:
    """Return the line with the job's accuracy. An evaluation does not stand in for the lost result of a success."""
    return progress.result or (None if state.phase is Phase.SUCCEEDED else progress.evaluation)


def _accuracy(line: ProgressLine | None) -> dict[str, str]:
    images = _number(line, "images")
    over = "" if images is None else f" of {images:,.0f} images"
    values = {name: _number(line, key) for name, key in (("top-1", "top1"), ("top-5", "top5"))}
    rows = {name: f"{value:.4g} %{over}" for name, value in values.items() if value is not None}
    best, epoch = _number(line, "best_top1"), _number(line, "best_epoch")
    if best is not None:
        # Epochs count from 1 here, as people count.
        rows["best"] = f"top-1 {best:.4g} %" + ("" if epoch is None else f" after epoch {epoch + 1:.0f}")
    return rows


def _ahead(state: JobState, progress: JobProgress) -> dict[str, str]:
    """Return how far a running job is, the time left, and what limits its speed."""
    ahead = progress.ahead
    done = _number(ahead, "done")
    if state.phase.ended or ahead is None or done is None:
        return {}
    limit = ahead.fields.get("limit")
    return {
        "done": f"{done:.1f} %",
        "time left": time_left(ahead),
        "limited by": "" if limit is None else str(limit),
        "slowest": slowest_rank(ahead),
    }


def _done_and_left(state: JobState, progress: JobProgress) -> tuple[str, str]:
    done, left = (_number(progress.ahead, name) for name in ("done", "left_s"))
    if state.phase.ended or done is None or left is None:
        return "-", "-"
    return f"{done:.0f} %", format_duration(left)


def _time_split(line: ProgressLine | None) -> dict[str, str]:
    """Return where the time went, the largest part first, and the slowest rank."""
    seconds = {name: _number(line, name) or 0.0 for name in _SECONDS}
    whole = sum(seconds.values())
    if line is None or whole <= 0:
        return {}
    parts = sorted(seconds.items(), key=lambda pair: -pair[1])
    shares = [f"{name.removesuffix('_s')} {100 * part / whole:.0f} %" for name, part in parts if part >= whole / 200]
    limit = line.fields.get("limit")
    return {"time": f"{', '.join(shares)}; limited by {limit}", "slowest": slowest_rank(line)}


def _hidden_lines(reading: "LogFollow") -> str:
    hidden = reading.same_lines.hidden
    return f"{_count(hidden, 'line')} of several ranks shown once; --all-ranks shows each" if hidden else ""


def _speed(line: ProgressLine | None) -> str:
    fps = _number(line, "fps")
    return "" if fps is None else f"{fps:,.1f} images/s"


def _work(result: ProgressLine | None) -> dict[str, str]:
    """Return the measured time under the name of the work; nothing if all steps were warm-up."""
    seconds = _number(result, "train_s")
    if result is None or not seconds:
        return {}
    return {"evaluation" if result.fields.get("mode") == "eval" else "training": format_duration(seconds)}


def _log_counts(reading: "LogFollow") -> str:
    counts = reading.demultiplexer
    missing = f"{counts.missing:,} missing" if counts.missing or not reading.losses else "an unknown number missing"
    text = f"{_count(counts.lines, 'line')} from {_count(len(counts.devices), 'device')}, {missing}"
    losses = [*map(str, counts.gaps()), *map(str, reading.losses)]
    more = [f"and {len(losses) - _SHOWN_LOSSES} more"] if len(losses) > _SHOWN_LOSSES else []
    return "; ".join([text, *losses[:_SHOWN_LOSSES], *more])


def _number(line: ProgressLine | None, key: str) -> float | None:
    return None if line is None else line.number(key)


def _percent(line: ProgressLine | None, key: str) -> str:
    value = _number(line, key)
    return "-" if value is None else f"{value:.4g} %"


def _fields(line: ProgressLine | None, names: Sequence[str]) -> dict[str, Any] | None:
    """Return the line's fields, all of `names` too; a number that JSON does not have (a loss of nan) becomes text."""
    if line is None:
        return None
    return dict.fromkeys(names) | {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in line.fields.items()
    }


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _iso(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, tz=timezone.utc).isoformat(timespec="milliseconds")
