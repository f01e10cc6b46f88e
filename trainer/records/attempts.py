"""The record of each attempt of a run: where it ran, its checkpoint, the crash before it, and how it ended.

`attempt.json` is the first attempt's, `attempt-2.json` the second one's. The supervisor of the first node writes it,
so that it also tells of an attempt whose workers left no word. An attempt without an end runs, or its supervisor was
killed.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.records.folder import attempt_file
from trainer.shared.files import replacing, writing

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
