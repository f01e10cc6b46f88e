"""`python -m docs.help_pages` writes launcher/pages.json: what the launcher's help pages hold, as cyclopts collects it.

The file cannot disagree with the command line: a test writes it anew and compares.
"""

import io
import json
from collections.abc import Iterator
from functools import cache
from typing import Any

from cyclopts import App
from cyclopts.help import HelpPanel
from rich.console import Console, ConsoleOptions, RenderableType

from launcher.app import app
from launcher.cli import COMMANDS, load
from launcher.pages import FILE
from trainer.shared.help import plain, rows_of


class _Recorder:
    """A formatter as cyclopts wants it, which keeps what it is told to draw."""

    def __init__(self) -> None:
        self.usage = self.description = ""
        self.groups: list[tuple[str, list[tuple[str, str]]]] = []

    def render_usage(self, console: Console, options: ConsoleOptions, usage: RenderableType) -> None:
        self.usage = plain(console, options, usage)

    def render_description(self, console: Console, options: ConsoleOptions, description: RenderableType) -> None:
        self.description = plain(console, options, description)

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        if rows := rows_of(console, options, panel):
            self.groups.append((plain(console, options, panel.title), list(rows)))


@cache
def prepared() -> App:
    """The command line with every option of every command."""
    load(list(COMMANDS))
    return app


def pages() -> str:
    """The whole file."""
    return json.dumps(dict(_pages(prepared(), ())), indent=1) + "\n"


def _pages(part: App, words: tuple[str, ...]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    yield " ".join(words), _page(words)
    for name in part:
        if not name.startswith("-"):
            yield from _pages(part[name], (*words, name))


def _page(words: tuple[str, ...]) -> tuple[Any, ...]:
    recorder, drawn = _Recorder(), io.StringIO()
    console = Console(file=drawn, width=10_000)
    kept, app.help_formatter = app.help_formatter, recorder
    try:
        app.help_print(words, console=console)
    finally:
        app.help_formatter = kept
    # What is not the formatter's to draw is the page's end.
    return recorder.usage, recorder.description, recorder.groups, drawn.getvalue().strip("\n")


if __name__ == "__main__":
    FILE.write_text(pages(), encoding="utf-8")
