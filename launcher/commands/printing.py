"""What every command prints beside its own: notes for a person, JSON for programs."""

import json
import sys
from typing import Any


def print_json(document: dict[str, Any]) -> None:
    """For programs."""
    print(json.dumps(document, indent=2))


def note(text: str) -> None:
    """For a person, beside what is printed."""
    print(text, file=sys.stderr, flush=True)
