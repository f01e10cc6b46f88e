"""Overlay of a pod template: the user's YAML merged into it, for settings without an option. Pure but for one file.

Mappings are merged; lists of mounts by their `mountPath`; other lists whose items have a `name` (containers, env,
volumes) by that name. Everything else is replaced; null removes.
"""

import json
from pathlib import Path
from typing import Any

from launcher.errors import RequestError
from trainer.shared.files import read_file
from trainer.shared.strict_yaml import parse_document

# The name of a mount is its volume's, which can be mounted more than once.
_KEYS = ("mountPath", "name")


def read_overlay(path: Path) -> dict[str, Any]:
    """Read the overlay in a file.

    Raises:
        RequestError: the file cannot be read, or is not a part of a pod template.
    """
    try:
        value = parse_document(read_file(path).decode())
    except OSError as error:
        raise RequestError(f"--overlay {path}: cannot be read: {error.strerror}; give a YAML file") from error
    except ValueError as error:  # bytes that are no text, too
        raise RequestError(f"--overlay {path}: {error}") from error
    if not isinstance(value, dict) or not value or not value.keys() <= {"metadata", "spec"}:
        raise RequestError(f"--overlay {path}: must hold `metadata` or `spec` of a pod template, like `spec: {{…}}`")
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RequestError(
            f"--overlay {path}: holds a value that JSON lacks, like a date: put it in quotes ({error})"
        ) from error
    return value


def merge_overlay(base: Any, over: Any) -> Any:
    """Return `base` with `over` laid over it; neither is changed."""
    if isinstance(base, dict) and isinstance(over, dict):
        both = {key: merge_overlay(value, over[key]) if key in over else value for key, value in base.items()}
        return {key: value for key, value in {**over, **both}.items() if over.get(key, "") is not None}
    for key in _KEYS:
        if _all_have(base, key) and _all_have(over, key):
            items = {item[key]: item for item in over}
            merged = [merge_overlay(item, items.pop(item[key])) if item[key] in items else item for item in base]
            return [*merged, *items.values()]
    return over


def _all_have(value: Any, key: str) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and isinstance(item.get(key), str) for item in value)
    )
