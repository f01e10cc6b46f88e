"""The forms of generated text: Markdown tables, and JSON with short lines."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

_WIDTH = 110


def table(title: str, heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Yield the lines of a Markdown table, below its title."""
    yield f"{title}\n"
    for row in (heads, ("---",) * len(heads), *rows):
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
    yield ""


def pretty_json(value: Any, indent: str = "") -> str:
    """Return JSON in which each part that fits on a line has one line."""
    text = json.dumps(value)
    if not isinstance(value, dict | list | tuple) or len(indent) + len(text) <= _WIDTH:
        return text
    inner = f"{indent}  "
    keys = [f"{json.dumps(key)}: " for key in value] if isinstance(value, dict) else [""] * len(value)
    parts = value.values() if isinstance(value, dict) else value
    lines = [f"{inner}{key}{pretty_json(part, inner)}" for key, part in zip(keys, parts, strict=True)]
    first, last = "{}" if isinstance(value, dict) else "[]"
    return "\n".join([first, ",\n".join(lines), f"{indent}{last}"])
