"""Output that every command shares: JSON for programs, notes for the user."""

import json
import sys
from typing import Any

from trainer.shared.text import visible


def print_json(document: dict[str, Any]) -> None:
    """Print a document for programs."""
    print(json.dumps(document, indent=2))


def note(text: str) -> None:
    """Print a note for the user on standard error; it can have several lines."""
    print("\n".join(map(visible, text.split("\n"))), file=sys.stderr, flush=True)
