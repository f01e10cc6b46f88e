"""The help pages at once: kept as text in pages.json, and drawn for the terminal without cyclopts, rich or pydantic.

`python -m docs.help_pages` writes the file from the command line's own definitions, and a test compares both, at every
width. What this module does not know, like `--help` among other options, the command line answers itself.
"""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from trainer.shared.help import first_line, group, what_for

FILE = Path(__file__).with_name("pages.json")
"""For each command's words: usage, description, groups of options, and the end of the page."""
_DEFAULT_COLUMNS = 80
_HELP = ("--help", "-h")


def page(words: Sequence[str], columns: int | None = None) -> str | None:
    """The page that these words ask for, or None if they ask for something else."""
    if words and words[-1] not in _HELP:
        return None
    with FILE.open(encoding="utf-8") as file:
        known = json.load(file).get(" ".join(words[:-1]))
    return None if known is None else _drawn(columns or _columns(), *known)


def _drawn(columns: int, first: str, text: str, groups: Sequence[tuple[str, list[tuple[str, str]]]], end: str) -> str:
    drawn = (group(title, rows, columns) for title, rows in groups)
    return "".join((first_line(first), what_for(text, columns), *drawn, f"\n{end}\n" if end else ""))


def _columns() -> int:
    """The width that somebody has set, or that of the terminal, wherever it is connected."""
    given = os.environ.get("COLUMNS", "")
    if given.isdigit():
        return int(given)
    for stream in (sys.__stdin__, sys.__stdout__, sys.__stderr__):
        with suppress(OSError, ValueError, AttributeError):
            return os.get_terminal_size(stream.fileno()).columns  # type: ignore[union-attr]
    return _DEFAULT_COLUMNS
