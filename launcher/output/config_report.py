"""The settings of a job as a table, as JSON, and as a profile. Pure: values in, text out."""

from pathlib import Path
from typing import Any

from launcher.output.report import columns
from launcher.settings.layers import Settings
from trainer.shared.documents import document
from trainer.shared.yaml_text import to_yaml


def settings_text(settings: Settings) -> str:
    """Return every setting with its value and the layer that gave it."""
    rows = [("SETTING", "VALUE", "FROM")]
    rows += [(name, _word(value), origin) for name, value, origin in settings.items()]
    return columns(rows)


def settings_document(settings: Settings) -> dict[str, Any]:
    """Return the same as a document of kind `Config`, which `--profile` reads too."""
    values = {
        name: {"value": _plain(value), "origin": origin, "set": settings.is_set(name)}
        for name, value, origin in settings.items()
    }
    return document("Config", settings=values)


def settings_yaml(settings: Settings) -> str:
    """Return the settings as a profile: what is set below its origin, and the others as comments."""
    groups: dict[str, dict[str, Any]] = {}
    others: dict[str, Any] = {}
    for name, value, origin in settings.items():
        group = groups.setdefault(origin, {}) if settings.is_set(name) else others
        group[name] = _plain(value)
    text = "".join(f"# from {origin}\n{to_yaml(values)}\n" for origin, values in groups.items())
    return text + "# not set\n" + "".join(f"# {line}\n" for line in to_yaml(others).splitlines())


def _plain(value: Any) -> Any:
    """Return a setting's value in JSON's types."""
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def _word(value: Any) -> str:
    """Return a value as users write it in an option."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
