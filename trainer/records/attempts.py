"""The record of each attempt of a run: where it ran, its checkpoint, the crash before it, and how it ended.

`attempt.json` is the first attempt's, `attempt-2.json` the second one's. The supervisor of the first node writes it,
so that it also tells of an attempt whose workers left no word. An attempt without an end runs, or its supervisor was
killed.
"""

import calendar
import itertools
import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.records.folder import attempt_file
from trainer.records.run_records import timestamp
from trainer.shared.files import replacing, writing

_TAIL_BYTES = 1 << 16
_LOST = 'cause="killed without a word (out of memory, or its pod or node is gone)"'
_NAME = re.compile(r"attempt(?:-\d+)?\.json")


def read_attempts(run: Path) -> list[Mapping[str, Any]]:
    """Return the records of a run's attempts in their order, without unreadable ones."""
    paths = [path for path in run.iterdir() if _NAME.fullmatch(path.name)] if run.is_dir() else []
    records = [record for path in paths if (record := _read(path)) is not None]
    return sorted(records, key=lambda record: int(record["attempt"]))


def _read(path: Path) -> Mapping[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("attempt"), int) else None


def write_attempt(run: Path, attempt: int, values: Mapping[str, Any]) -> None:
    """Write an attempt's record, in place of its earlier one.

    Raises:
        TrainerError: It cannot be written.
    """
    path = attempt_file(run / "attempt.json", attempt)
    with writing(path), replacing(path) as partial:
        partial.write_text(json.dumps({"attempt": attempt, **values}, indent=2) + "\n", encoding="utf-8")


def history(run: Path) -> list[dict[str, Any]]:
    """Return what is known of each attempt, oldest first. The next attempt tells of one that was killed."""
    records = [dict(record) for record in read_attempts(run)]
    for record, following in itertools.pairwise(records):
        if "outcome" not in record:
            ended = (time_of(following.get("started")) or 0) - (following.get("gap_s") or 0)
            # A trainer can end before it has workers.
            outcome = {"stopped": "resumable", "failed": "failed"}.get(str(record.get("try_ended")), "lost")
            record |= {"outcome": outcome, "ended": timestamp(ended), "steps": following.get("steps_before")}
            record["cause"] = record.get("cause") or (_LOST if outcome == "lost" else None)
    return records


def reached_step(run: Path) -> int:
    """Return how many steps the run has done, by the end of its metrics."""
    try:
        with (run / "metrics.jsonl").open("rb") as file:
            file.seek(-min(_TAIL_BYTES, file.seek(0, os.SEEK_END)), os.SEEK_END)
            lines = file.read().splitlines()
    except OSError:
        return 0
    return max((step + 1 for line in lines if (step := _step(line)) is not None), default=0)


def time_of(text: object) -> float | None:
    """Return the time of a record in seconds since 1970; None for another text."""
    try:
        parsed = time.strptime(str(text), "%Y-%m-%dT%H:%M:%SZ")
    except ValueError:
        return None
    return float(calendar.timegm(parsed))


def _step(line: bytes) -> int | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    step = row.get("global_step") if isinstance(row, dict) else None
    return step if isinstance(step, int) else None
