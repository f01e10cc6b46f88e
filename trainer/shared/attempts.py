"""The attempts of a run, as its folder tells of them: `attempt.json` is the first one's, `attempt-2.json` the second's.

Both programs read these files; `trainer.records.attempts` writes them.
"""

import calendar
import itertools
import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_LOST = 'cause="killed without a word (out of memory, or its pod or node is gone)"'
_LONGEST_GAP_S = 1e9
ATTEMPT_FILE = re.compile(r"attempt(?:-\d+)?\.json")


def read_attempts(run: Path) -> list[Mapping[str, Any]]:
    """Return the records of a run's attempts in their order, without unreadable ones."""
    paths = [path for path in run.iterdir() if ATTEMPT_FILE.fullmatch(path.name)] if run.is_dir() else []
    records = [record for path in paths if (record := _read(path)) is not None]
    return sorted(records, key=lambda record: int(record["attempt"]))


def _read(path: Path) -> Mapping[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("attempt"), int) else None


def attempt_history(run: Path) -> list[dict[str, Any]]:
    """Return what is known of each attempt, oldest first. The next attempt tells of one that was killed."""
    records = [dict(record) for record in read_attempts(run)]
    for record, following in itertools.pairwise(records):
        if "outcome" not in record:
            ended = (time_of(following.get("started")) or 0) - _gap_s(following)
            # A trainer can end before it has workers.
            outcome = {"stopped": "resumable", "failed": "failed"}.get(str(record.get("try_ended")), "lost")
            record |= {"outcome": outcome, "ended": timestamp(ended), "steps": following.get("steps_before")}
            record["cause"] = record.get("cause") or (_LOST if outcome == "lost" else None)
    return records


def _gap_s(record: Mapping[str, Any]) -> float:
    """Return the seconds before an attempt in which nothing was seen of the run; 0 if a damaged record has no such."""
    gap_s = record.get("gap_s")
    return gap_s if isinstance(gap_s, int | float) and 0 <= gap_s < _LONGEST_GAP_S else 0


def attempt_file(path: Path, attempt: int) -> Path:
    """Return the name of an attempt's own file: `config.yaml`, then `config-2.yaml`, ..."""
    return path if attempt == 1 else path.with_name(f"{path.stem}-{attempt}{path.suffix}")


def timestamp(seconds: float) -> str:
    """Return seconds since the epoch as ISO 8601 in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def time_of(text: object) -> float | None:
    """Return the time of a record in seconds since 1970; None for another text."""
    try:
        parsed = time.strptime(str(text), "%Y-%m-%dT%H:%M:%SZ")
    except ValueError:
        return None
    return float(calendar.timegm(parsed))
