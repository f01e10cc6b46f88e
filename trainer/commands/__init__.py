"""The trainer's other commands: `data`, `predict`, `export`, ... Only these modules and `trainer.cli` print."""

import os
import sys
from typing import Annotated, NoReturn

from cyclopts import Parameter

from trainer.shared.config import EMULATED, emulated_machine
from trainer.shared.documents import JSON_OPTION
from trainer.shared.errors import UsageError

AsJson = Annotated[
    bool,
    Parameter(
        name=JSON_OPTION,
        negative="",
        show_default=False,
        help="Print one JSON object instead of lines, errors too (docs/json.md).",
    ),
]


def start_on_emulated_npus() -> NoReturn:
    """Replace this process by the same command with the emulated NPUs on its PYTHONPATH."""
    if sys.flags.ignore_environment:
        raise UsageError(f"--device {EMULATED}: Python must read PYTHONPATH: start it without -I and -E")
    os.execv(sys.executable, (sys.executable, str(emulated_machine()), sys.executable, *sys.orig_argv[1:]))
