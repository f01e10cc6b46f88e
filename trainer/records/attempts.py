"""The record of each attempt of a run: where it ran, its checkpoint, the crash before it, and how it ended.

`attempt.json` is the first attempt's, `attempt-2.json` the second one's. The supervisor of the first node writes it,
so that it also tells of an attempt whose workers left no word. An attempt without an end runs, or its supervisor was
killed.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.shared.attempts import attempt_file
from trainer.shared.files import replacing, writing

_TAIL_BYTES = 1 << 16


def write_attempt(run: Path, attempt: int, values: Mapping[str, Any]) -> None:
    """Write an attempt's record, in place of its earlier one.

    Raises:
        TrainerError: It cannot be written.
    """
    path = attempt_file(run / "attempt.json", attempt)
    with writing(path), replacing(path) as partial:
        partial.write_text(json.dumps({"attempt": attempt, **values}, indent=2) + "\n", encoding="utf-8")


def reached_step(run: Path) -> int:
    """Return how many steps the run has done, by the end of its metrics."""
    try:
        with (run / "metrics.jsonl").open("rb") as file:
            size, length = file.seek(0, os.SEEK_END), _TAIL_BYTES
            while True:
                file.seek(max(0, size - length))
                steps = [step for line in file.read().splitlines() if (step := _step(line)) is not None]
                # A run that hung before its end has only rows about the hardware there.
                if steps or length >= size:
                    return max(steps, default=-1) + 1
                length *= 8
    except OSError:
        return 0


def _step(line: bytes) -> int | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    step = row.get("global_step") if isinstance(row, dict) else None
    return step if isinstance(step, int) else None
