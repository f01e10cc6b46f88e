"""The help pages' layout: aligned columns that fit the terminal, without boxes, so that they also read well in a pipe.

cyclopts collects what each command takes; this module only draws it, also for who has collected it before (the
launcher's pages). Every command imports it, so it imports nothing that costs.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cyclopts.help import HelpEntry, HelpPanel
    from rich.console import Console, ConsoleOptions, RenderableType

_WIDEST = 100


Rows = Sequence[tuple[str, str]]
"""Names of commands or options, and what each is."""


def first_line(text: str) -> str:
    """The first line of a page."""
    return f"Usage: {text.removeprefix('Usage: ')}\n\n"


def what_for(text: str, columns: int) -> str:
    """What the command is for; paragraphs that are indented hold commands, and stay as they are."""
    width = min(columns, _WIDEST)
    paragraphs = (part if part.startswith(" ") else textwrap.fill(part, width) for part in text.split("\n\n"))
    return "\n\n".join(paragraphs) + "\n\n"


def group(title: str, rows: Rows, columns: int) -> str:
    """One group of commands or options."""
    width = min(columns, _WIDEST)
    names_width = min(max(len(names) for names, _ in rows), width * 3 // 10)
    text_width = max(width - names_width - 4, 20)
    lines = [f"{title}:"]
    for names, text in rows:
        wrapped = _wrap(text, text_width) or [""]
        # Names that are too long for their column have a line of their own.
        lines += [f"  {names}"] if len(names) > names_width else []
        first = "" if len(names) > names_width else names
        lines.append(f"  {first:<{names_width}}  {wrapped[0]}".rstrip())
        lines += [" " * (names_width + 4) + line for line in wrapped[1:]]
    return "\n".join(lines) + "\n\n"


class HelpPage:
    """A formatter as cyclopts wants it: one method for each part of the page."""

    def render_usage(self, console: Console, options: ConsoleOptions, usage: RenderableType) -> None:
        """Draw the first line."""
        _write(console, first_line(plain(console, options, usage)))

    def render_description(self, console: Console, options: ConsoleOptions, description: RenderableType) -> None:
        """Draw what the command is for."""
        _write(console, what_for(plain(console, options, description), options.max_width))

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """Draw one group of commands or options."""
        if rows := rows_of(console, options, panel):
            _write(console, group(plain(console, options, panel.title), rows, options.max_width))


def rows_of(console: Console, options: ConsoleOptions, panel: HelpPanel) -> Rows:
    """What a group of cyclopts' holds, as text."""
    return [(_names(entry), " ".join(_words(console, options, entry))) for entry in panel.entries]


def plain(console: Console, options: ConsoleOptions, renderable: RenderableType | None) -> str:
    """What cyclopts hands over, without colours and line breaks of its own."""
    if renderable is None:
        return ""
    return "".join(segment.text for segment in console.render(renderable, options.update(width=10_000))).strip()


def _names(entry: HelpEntry) -> str:
    """`--follow, -f`; of an option that can be switched off too, `--[no-]nesterov`."""
    names = [*entry.positive_names, *entry.positive_shorts]
    if entry.negative_names:
        names[0] = names[0].replace("--", "--[no-]", 1)
    return ", ".join(names)


def _words(console: Console, options: ConsoleOptions, entry: HelpEntry) -> Iterator[str]:
    yield plain(console, options, entry.description)
    if entry.choices and len(entry.choices) > 1:
        yield f"({', '.join(entry.choices)})"
    if entry.default:
        yield f"[default: {entry.default}]"


def _wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width`; what is in square brackets, a default, stays together."""
    whole = re.sub(r"\[[^]]*\]", lambda part: part[0].replace(" ", "\0"), text)
    return [line.replace("\0", " ") for line in textwrap.wrap(whole, width, break_on_hyphens=False)]


def _write(console: Console, text: str) -> None:
    console.print(text, end="", markup=False, highlight=False, soft_wrap=True)
