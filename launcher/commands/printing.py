"""Output that every command shares: JSON for programs, notes for the user."""

import json
import sys
from typing import Any

from trainer.shared.documents import json_text
from trainer.shared.text import visible


def print_json(document: dict[str, Any], *, of_several: bool = False) -> None:
    """Print a document for programs; one of several in one line."""
    print(json.dumps(document) if of_several else json_text(document), flush=True)


def note(text: str) -> None:
    """Print a note for the user on standard error; it can have several lines."""
    print("\n".join(map(visible, text.split("\n"))), file=sys.stderr, flush=True)
