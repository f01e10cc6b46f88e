"""The first help page, drawn without the command line's library, which takes five times as long to import."""

import shutil
import sys
from collections.abc import Sequence
from functools import partial
from itertools import groupby

from launcher import PROGRAM
from launcher.commands import COMMANDS
from launcher.errors import MEANINGS
from trainer.shared.help import draw_description, draw_group, draw_usage
from trainer.shared.program import drop_output

PURPOSE = f"""
Train PNASNet-5 on NPUs: start a job, follow its log per device, and see how it ends.

A job outlives this program: leave it with Ctrl-C, and come back whenever you like.

For example:

  {PROGRAM} submit --npus 8 --mode full --data-path /data/imagenet
  {PROGRAM} logs -f
  {PROGRAM} submit --help
"""
OPTIONS = {"--help, -h": "Display this message and exit.", "--version": "Display application version."}
EXIT_CODES = "Exit codes:\n" + "\n".join(f"  {code.value:>3}  {text}" for code, text in MEANINGS.items())


def first_page(columns: int) -> str:
    """Return the page for a terminal of this width."""
    page = draw_usage(f"{PROGRAM} COMMAND") + draw_description(PURPOSE.strip("\n"), columns)
    for title, entries in groupby(COMMANDS, key=lambda entry: entry.group):
        page += draw_group(title, sorted((entry.name, entry.summary) for entry in entries), columns)
    return page + draw_group("Help", list(OPTIONS.items()), columns) + "\n" + EXIT_CODES + "\n"


def main(_tokens: Sequence[str]) -> int:
    """Print the page; return the exit code."""
    page = first_page(shutil.get_terminal_size().columns)
    try:
        sys.stdout.write(page)
        sys.stdout.flush()
    except OSError as error:
        # A full disk, or a reader that has gone: the command line's own errors need its library.
        from launcher.exits import run_command  # noqa: PLC0415  # cyclopts takes five times as long to import

        drop_output(sys.stdout)  # The rest of the page would fail once more.
        return run_command(partial(_fail_again, error))
    return 0


def _fail_again(error: OSError) -> None:
    raise error
