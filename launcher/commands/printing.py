"""Output that every command shares: JSON for programs, notes for the user."""

import json
import sys
from typing import Any


def print_json(document: dict[str, Any]) -> None:
    """Print a document for programs."""
    print(json.dumps(document, indent=2))


def note(text: str) -> None:
    """Print a note for the user on standard error."""
    print(text, file=sys.stderr, flush=True)
