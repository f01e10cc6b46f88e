"""`python -m launcher`: imports the command that was typed, runs it, and gives its exit code.

Commands print; `display` draws a followed log, and `exits` tells what went wrong.
"""

import gc
import importlib
import os
import signal
from collections.abc import Sequence

from launcher.app import app
from launcher.exits import redeliver_interrupts, run_command

COMMANDS = {
    "submit": "submit",
    "render": "render",
    "doctor": "doctor",
    "config": "config",
    **dict.fromkeys(("logs", "status", "wait", "list"), "watch"),
    **dict.fromkeys(("cancel", "delete"), "stop"),
}
"""The module of each command."""
_TAKE_SETTINGS = {"submit": "submit", "render": "render", "doctor": "doctor", "config": "config_show"}


def main(tokens: Sequence[str]) -> int:
    """Run one command; return its exit code. Every error is one line on stderr."""
    # Nothing that is imported is garbage; looking for some after each 700 objects costs a tenth of the start.
    gc.set_threshold(50_000)
    # Before its first model pydantic looks for plugins in every package that is installed.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    # SIGTERM lets go of a job just as Ctrl-C does; neither ends it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    redeliver_interrupts()
    return run_command(lambda: _command(tokens))


def load(words: Sequence[str], tokens: Sequence[str] | None = None) -> None:
    """Have these commands join the command line.

    Args:
        tokens: what was typed; None to have every option of each.
    """
    for word in words:
        module = importlib.import_module(f"launcher.commands.{COMMANDS[word]}")
        if word in _TAKE_SETTINGS:
            from launcher.commands.settings import take_settings  # noqa: PLC0415  # pydantic: only these commands pay for it

            take_settings(getattr(module, _TAKE_SETTINGS[word]), tokens)


def _command(tokens: Sequence[str]) -> None:
    first = next(iter(tokens), "")
    # What is none of them gets a suggestion, for which all must be there.
    load([first] if first in COMMANDS else list(COMMANDS), tokens)
    app(tokens, exit_on_error=False, print_error=False)
