"""A process that runs checks at one place: `python -m trainer.proof.process ASSIGNMENT FD`.

It writes a line of JSON to the descriptor FD for each mark and each outcome, so that the runner knows what hangs, and
keeps the outcomes from before. Libraries can print what they want.
"""

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer.proof.catalogue import CHECKS
from trainer.proof.check import CheckOutcome, CheckPlace, Context
from trainer.shared.errors import TrainerError


def main(words: Sequence[str]) -> int:
    """Run the checks of the assignment, one after the other."""
    assignment, fd = json.loads(words[0]), int(words[1])
    place = CheckPlace(**assignment["place"] | {"devices": tuple(assignment["place"]["devices"])})
    checks = {check.name: check for check in CHECKS}

    def send(**message: Any) -> None:
        os.write(fd, json.dumps(message).encode() + b"\n")

    for name in assignment["checks"]:
        send(check=name)
        with tempfile.TemporaryDirectory(prefix="pnas-prove-", dir=assignment["folder"]) as folder:
            context = Context(place, Path(folder), lambda text: send(mark=text))
            send(outcome=_outcome(checks[name].load(), context))
    return 0


def _outcome(function: Any, context: Context) -> Mapping[str, Any]:
    try:
        outcome = function(context)
    except (TrainerError, RuntimeError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        outcome = CheckOutcome("failed", f"{type(error).__name__}: {reason}", "no error", "see the message")
    return asdict(outcome)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
