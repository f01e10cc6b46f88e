"""The record of each attempt of a run: where it ran, its checkpoint, the crash before it, and how it ended.

`attempt.json` is the first attempt's, `attempt-2.json` the second one's. The supervisor of the first node writes it,
so that it also tells of an attempt whose workers left no word. An attempt without an end runs, or its supervisor was
killed.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.records.folder import attempt_file
from trainer.shared.files import replacing, writing


def write_attempt(run: Path, attempt: int, values: Mapping[str, Any]) -> None:
    """Write an attempt's record, in place of its earlier one.

    Raises:
        TrainerError: It cannot be written.
    """
    path = attempt_file(run / "attempt.json", attempt)
    with writing(path), replacing(path) as partial:
        partial.write_text(json.dumps({"attempt": attempt, **values}, indent=2) + "\n", encoding="utf-8")
