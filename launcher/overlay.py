"""Overlay of a pod template: a person's YAML merged into it, for what no option says. Pure but for reading the file.

Mappings are merged; a list whose items have a `name` (containers, env, volumes) is merged by it; everything else is
replaced; null removes.
"""

from pathlib import Path
from typing import Any

import yaml

from launcher.errors import RequestError


def read_overlay(path: Path) -> dict[str, Any]:
    """The overlay in a file.

    Raises:
        RequestError: it cannot be read, or is no part of a pod template.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"--overlay {path}: cannot be read: {error.strerror}; give a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"--overlay {path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict) or not value or not value.keys() <= {"metadata", "spec"}:
        raise RequestError(f"--overlay {path}: must hold `metadata` or `spec` of a pod template, like `spec: {{…}}`")
    return value


def merged(base: Any, over: Any) -> Any:
    """`over` laid over `base`; neither is changed."""
    if isinstance(base, dict) and isinstance(over, dict):
        both = {key: merged(value, over[key]) if key in over else value for key, value in base.items()}
        return {key: value for key, value in {**over, **both}.items() if over.get(key, "") is not None}
    if _named(base) and _named(over):
        names = {item["name"]: item for item in over}
        kept = [merged(item, names.pop(item["name"])) if item["name"] in names else item for item in base]
        return [*kept, *names.values()]
    return over


def _named(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) and "name" in item for item in value)
