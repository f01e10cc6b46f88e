"""The help pages' layout: aligned columns that fit the terminal, without boxes, so that they also read well in a pipe.

cyclopts collects the options of each command; this module only draws them. The launcher draws its first page from it
without cyclopts, so it imports nothing that takes time.
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
"""The names of commands or options, each with its text."""


def draw_usage(text: str) -> str:
    """Return the first line of a page."""
    return f"Usage: {text.removeprefix('Usage: ')}\n\n"


def draw_description(text: str, columns: int) -> str:
    """Return the purpose of the command; indented paragraphs hold commands, and stay as they are."""
    width = min(columns, _WIDEST)
    paragraphs = (part if part.startswith(" ") else textwrap.fill(part, width) for part in text.split("\n\n"))
    return "\n\n".join(paragraphs) + "\n\n"


def draw_group(title: str, rows: Rows, columns: int) -> str:
    """Return one group of commands or options."""
    width = min(columns, _WIDEST)
    names_width = min(max(len(names) for names, _ in rows), width * 3 // 10)
    text_width = max(width - names_width - 4, 20)
    lines = [f"{title}:"]
    for names, text in rows:
        wrapped = _wrap(text, text_width) or [""]
        # Names that are too long for their column have their own line.
        lines += [f"  {names}"] if len(names) > names_width else []
        first = "" if len(names) > names_width else names
        lines.append(f"  {first:<{names_width}}  {wrapped[0]}".rstrip())
        lines += [" " * (names_width + 4) + line for line in wrapped[1:]]
    return "\n".join(lines) + "\n\n"


class HelpPage:
    """A formatter with the interface that cyclopts calls: one method for each part of the page."""

    def render_usage(self, console: Console, options: ConsoleOptions, usage: RenderableType) -> None:
        """Draw the first line."""
        _write(console, draw_usage(_plain(console, options, usage)))

    def render_description(self, console: Console, options: ConsoleOptions, description: RenderableType) -> None:
        """Draw the purpose of the command."""
        _write(console, draw_description(_plain(console, options, description), options.max_width))

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """Draw one group of commands or options."""
        rows = [(_names(entry), " ".join(_words(console, options, entry))) for entry in panel.entries]
        if rows:
            _write(console, draw_group(_plain(console, options, panel.title), rows, options.max_width))


def _plain(console: Console, options: ConsoleOptions, renderable: RenderableType | None) -> str:
    """Return cyclopts' text without its colours and line breaks."""
    if renderable is None:
        return ""
    return "".join(segment.text for segment in console.render(renderable, options.update(width=10_000))).strip()


def _names(entry: HelpEntry) -> str:
    """Return an option's names: `--follow, -f`, or `--[no-]nesterov` if it can be switched off."""
    names = [*entry.positive_names, *entry.positive_shorts]
    if entry.negative_names:
        names[0] = names[0].replace("--", "--[no-]", 1)
    return ", ".join(names)


def _words(console: Console, options: ConsoleOptions, entry: HelpEntry) -> Iterator[str]:
    yield _plain(console, options, entry.description)
    if entry.choices and len(entry.choices) > 1:
        yield f"({', '.join(entry.choices)})"
    if entry.default:
        yield f"[default: {entry.default}]"


def _wrap(text: str, width: int) -> list[str]:
    """Return lines of at most `width`; square brackets, which hold a default, stay together."""
    whole = re.sub(r"\[[^]]*\]", lambda part: part[0].replace(" ", "\0"), text)
    return [line.replace("\0", " ") for line in textwrap.wrap(whole, width, break_on_hyphens=False)]


def _write(console: Console, text: str) -> None:
    console.print(text, end="", markup=False, highlight=False, soft_wrap=True)
