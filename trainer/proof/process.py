"""A process that runs checks at one place, as the runner assigns them: its `main` gets ASSIGNMENT and FD.

It writes a line of JSON to the descriptor FD for each mark and each outcome, so that the runner knows what hangs, and
keeps the outcomes from before. Libraries can print what they want. The process ends with the runner, whose end of the
standard input is then gone.
"""

import importlib
import json
import math
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from trainer.proof.check import CheckFunction, CheckOutcome, CheckPlace, Context
from trainer.shared.errors import TrainerError
from trainer.supervisor import die_with_supervisor


def main() -> int:
    """Run the checks of the assignment, one after the other."""
    die_with_supervisor()
    assignment, fd = json.loads(sys.argv[1]), int(sys.argv[2])
    place = place_of(assignment["place"])

    def send(**message: Any) -> None:
        os.write(fd, json.dumps(message).encode() + b"\n")

    for name, function in assignment["checks"]:
        send(check=name)
        outcome = _outcome(function, place, assignment, lambda text: send(mark=text))
        send(check=name, outcome=outcome)
        if outcome["verdict"] == "failed" and len(place.devices) > 1:
            # The runner now ends all processes of the place. Until then the others must not hear that this one is gone.
            signal.pause()
    return 0


def place_of(fields: Mapping[str, Any]) -> CheckPlace:
    """Return the place that was sent as JSON, which has no tuples."""
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    return CheckPlace(**values)


def _outcome(function: str, place: CheckPlace, assignment: Mapping[str, Any], mark: Any) -> Mapping[str, Any]:
    """Import and call the function `module:name`; an error that devices, files or settings raise is its outcome."""
    try:
        with tempfile.TemporaryDirectory(dir=assignment["scratch"], ignore_cleanup_errors=True) as folder:
            outcome = load_check(function)(
                Context(place, Path(folder), Path(assignment["scratch"]), Path(assignment["output"]), mark)
            )
    except (TrainerError, RuntimeError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        outcome = CheckOutcome("failed", f"{type(error).__name__}: {reason}", "no error", "see the message")
    figures = {name: figure for name, figure in outcome.figures.items() if math.isfinite(figure)}  # JSON has no others
    return asdict(replace(outcome, figures=figures))


def load_check(function: str) -> CheckFunction:
    """Import the function `module:name`."""
    module, _, name = function.partition(":")
    loaded: CheckFunction = getattr(importlib.import_module(module), name)
    return loaded
