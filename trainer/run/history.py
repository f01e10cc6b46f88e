"""The history of a run by the records of its attempts, as lines of the log: a cluster's launcher sees nothing else.

Each attempt's line tells where it ran, what it continued from, how long the run had stood still before, how far it got,
and why it ended. `python -m launcher status --history` reads them.
"""

import contextlib
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.records.attempts import reached_step
from trainer.records.run_records import logfmt
from trainer.shared.attempts import attempt_history, read_attempts, time_of, timestamp
from trainer.supervisor import Outcome

MOST_LINES = 50
"""Of earlier attempts: a run that is preempted each hour has hundreds."""


def begin_record(
    run: Path, *, job: str | None, nodes: int, checkpoint: str | None, crash: str | None
) -> dict[str, Any]:
    """Return the record of an attempt that begins now.

    Args:
        job: The cluster's job, if its pod says which one.
        checkpoint: The state that it continues from.
        crash: Why it follows the attempt before it in the same container.
    """
    now, records = time.time(), list[Mapping[str, Any]]()
    with contextlib.suppress(OSError):  # a file server that does not answer costs only the gap
        records = read_attempts(run)
    last = _last_sign(run, records[-1]) if records else None
    return {
        "host": platform.node(),
        "node": os.environ.get("NODE_NAME"),
        "nodes": nodes,
        "job": job,
        "started": timestamp(now),
        "checkpoint": checkpoint,
        "restarted_after": crash,
        "gap_s": None if last is None else max(0, round(now - last)),
        "steps_before": reached_step(run),
    }


def end_record(run: Path, outcome: Outcome) -> dict[str, Any]:
    """Return what the record of an attempt gets when it ends."""
    return {
        "ended": timestamp(time.time()),
        "steps": reached_step(run),
        "outcome": outcome.word,
        "exit_code": outcome.exit_code,
        "cause": None if outcome.first_failure is None else outcome.first_failure.fields,
    }


def history_lines(run: Path) -> list[str]:
    """Return one line for each of the latest attempts."""
    return [_line(record) for record in attempt_history(run)[-MOST_LINES:]]


def _last_sign(run: Path, record: Mapping[str, Any]) -> float | None:
    """Return when an attempt ended, or when it was last seen at work, in seconds since 1970."""
    if (ended := time_of(record.get("ended"))) is not None:
        return ended
    seen = [started] if (started := time_of(record.get("started"))) is not None else []
    with contextlib.suppress(OSError):
        seen.append((run / "metrics.jsonl").stat().st_mtime)
    return max(seen, default=None)


def _line(record: Mapping[str, Any]) -> str:
    values = {
        "n": record["attempt"],
        **{name: record.get(name) for name in ("host", "node", "nodes", "started", "ended")},
        "from": record.get("checkpoint"),
        **{name: record.get(name) for name in ("gap_s", "steps", "outcome")},
    }
    cause = str(record.get("cause") or "")
    # The cause of a worker's failure is in logfmt already, with its rank.
    end = f" {cause}" if cause.startswith(("rank=", "cause=")) else ""
    return logfmt("attempt", values if end or not cause else {**values, "cause": cause}) + end
