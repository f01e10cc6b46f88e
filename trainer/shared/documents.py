"""JSON for programs, in one style for both command lines: `apiVersion`, `kind`, and keys like `exitCode`.

The documents are an interface: `apiVersion` changes when a field changes its meaning or is removed. docs/documents.py
has the type of each kind, and writes its schema; the tests compare what the commands print.
"""

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

API_VERSION = "pnas/v1"
JSON_OPTION = "--json"


def document(kind: str, **fields: Any) -> dict[str, Any]:
    """Return a document."""
    return {"apiVersion": API_VERSION, "kind": kind, **fields}


def json_text(document: Mapping[str, Any]) -> str:
    """Return a document for programs that people can read, too."""
    return json.dumps(document, indent=2)


def error_line(error: BaseException | str, message: str, code: int) -> str:
    """Return an error as a document of kind Error, in one line.

    Args:
        error: The error, or its name.
        code: The exit code.
    """
    name = error if isinstance(error, str) else type(error).__name__
    return json.dumps(document("Error", code=int(code), reason=name.removesuffix("Error"), message=message))


def to_json(value: Any) -> Any:
    """Return values of dataclasses as JSON has them: fields as `worldSize`, keys of mappings as they are."""
    if is_dataclass(value) and not isinstance(value, type):
        return {camel_case(field.name): to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def camel_case(name: str) -> str:
    """Return `worldSize` for `world_size`."""
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)
