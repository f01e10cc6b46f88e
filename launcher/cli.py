"""`python -m launcher`: the command line. Each command's module is imported when a user types the command."""

import gc
import os
import signal
from collections.abc import Sequence

from cyclopts import App, Group

from launcher import PROGRAM
from launcher.commands import COMMANDS
from launcher.commands.parameters import examples, refuse_empty_values
from launcher.exits import redeliver_interrupts, run_command
from launcher.first_page import EXIT_CODES, PURPOSE
from trainer.shared.documents import JSON_OPTION
from trainer.shared.help import HelpPage


def main(tokens: Sequence[str]) -> int:
    """Run one command; return its exit code. Every error is one line on stderr."""
    # Nothing that is imported is garbage; a collection after each 700 objects costs a tenth of the start.
    gc.set_threshold(50_000)
    # Before its first model, pydantic looks for plugins in every installed package.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    # SIGTERM leaves a job as Ctrl-C does; neither ends it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    redeliver_interrupts()
    return run_command(lambda: _run(tokens), as_json=JSON_OPTION in tokens)


def _run(tokens: Sequence[str]) -> None:
    refuse_empty_values(tokens)
    app(tokens, exit_on_error=False, print_error=False)


def _version() -> str:
    from importlib.metadata import version  # noqa: PLC0415  # only --version pays for it

    return f"pnas {version('pnas')}"


app = App(
    name=PROGRAM,
    help=PURPOSE,
    help_format="plaintext",
    help_formatter=HelpPage(),
    help_epilogue=EXIT_CODES,
    version=_version,
    group_parameters="Options",
    result_action="return_value",
    suppress_keyboard_interrupt=False,  # cyclopts would turn it into the SystemExit of a closed output
)
_groups = {name: Group.create_ordered(name) for name in dict.fromkeys(entry.group for entry in COMMANDS)}
app["--help"].group = app["--version"].group = Group.create_ordered("Help")
for _entry in COMMANDS:
    _epilogue = {"help_epilogue": examples(*_entry.examples)} if _entry.examples else {}
    app.command(
        f"launcher.commands.{_entry.target}",
        name=_entry.name,
        group=_groups[_entry.group],
        **_epilogue,
    )
