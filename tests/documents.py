"""The JSON of a command, compared with its kind's schema in docs/schema."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

SCHEMAS = Path(__file__).parents[1] / "docs" / "schema"


def documents(text: str) -> list[dict[str, Any]]:
    """Return the documents in the output of a command; each has the schema of its kind."""
    try:
        values = [json.loads(text, parse_constant=_refuse)]
    except json.JSONDecodeError:
        values = [json.loads(line, parse_constant=_refuse) for line in text.splitlines()]
    for value in values:
        _validator(value["kind"]).validate(value)
    return values


def one_document(text: str, kind: str) -> dict[str, Any]:
    """Return the only document in the output of a command."""
    (document,) = documents(text)
    assert document["kind"] == kind
    return document


@cache
def _validator(kind: str) -> jsonschema.Draft202012Validator:
    schema = json.loads((SCHEMAS / f"{kind}.json").read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())


def _refuse(constant: str) -> None:
    raise AssertionError(f"JSON has no {constant}")
