"""Overlay of a pod template: a person's YAML merged into it, for what no option says. Pure but for reading the file.

Mappings are merged; lists of mounts by their `mountPath`, other lists whose items have a `name` (containers, env,
volumes) by that; everything else is replaced; null removes.
"""

import json
from pathlib import Path
from typing import Any

import yaml

from launcher.errors import RequestError

# A mount has the name of its volume, which may be mounted more than once.
_KEYS = ("mountPath", "name")


def read_overlay(path: Path) -> dict[str, Any]:
    """The overlay in a file.

    Raises:
        RequestError: it cannot be read, or is no part of a pod template.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"--overlay {path}: cannot be read: {error.strerror}; give a YAML file") from error
    except (yaml.YAMLError, ValueError) as error:  # a date that is none, or what is no text, is no YAMLError
        raise RequestError(f"--overlay {path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict) or not value or not value.keys() <= {"metadata", "spec"}:
        raise RequestError(f"--overlay {path}: must hold `metadata` or `spec` of a pod template, like `spec: {{…}}`")
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RequestError(
            f"--overlay {path}: holds what JSON has not, like a date: put it in quotes ({error})"
        ) from error
    return value


def merged(base: Any, over: Any) -> Any:
    """`over` laid over `base`; neither is changed."""
    if isinstance(base, dict) and isinstance(over, dict):
        both = {key: merged(value, over[key]) if key in over else value for key, value in base.items()}
        return {key: value for key, value in {**over, **both}.items() if over.get(key, "") is not None}
    for key in _KEYS:
        if _keyed(base, key) and _keyed(over, key):
            items = {item[key]: item for item in over}
            kept = [merged(item, items.pop(item[key])) if item[key] in items else item for item in base]
            return [*kept, *items.values()]
    return over


def _keyed(value: Any, key: str) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and isinstance(item.get(key), str) for item in value)
    )
