"""What a person sees while a job runs: one live line per device in a terminal, plain lines everywhere else.

The only module that draws. rich is imported for a terminal only, so that a pipe or a CI job does not pay for it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO, Literal, Protocol

from launcher.output.device_lines import device_lines
from launcher.output.lines import Gap, Line
from launcher.output.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

Format = Literal["text", "raw", "json"]


class View(Protocol):
    """Something that shows lines as they come."""

    def show(self, items: Sequence[Line | Gap]) -> None:
        """Show these lines, and say where lines are missing."""

    def note(self, text: str) -> None:
        """Say on stderr what is no line of the log."""

    def lose(self, text: str) -> None:
        """Say at its place what is lost without a number."""

    def close(self) -> None:
        """Leave the output in a state that others can print to."""


def open_view(form: Format, *, progress: Progress, live: bool, timestamps: bool = False) -> View:
    """A live view if asked for and standard output is a terminal that can move its cursor, else plain lines."""
    if live and form == "text" and sys.stdout.isatty():
        from rich.console import Console  # noqa: PLC0415  # only a terminal pays for it

        console = Console(highlight=False, markup=False, emoji=False)
        if not console.is_dumb_terminal:
            return LiveView(console, progress)
    return PlainView(sys.stdout.buffer, form, timestamps=timestamps)


class PlainView:
    """Lines as text without their numbers, raw as they were written, or as one JSON object each."""

    def __init__(self, out: BinaryIO, form: Format, *, timestamps: bool = False) -> None:
        self._out = out
        self._form = form
        self._timestamps = timestamps

    def show(self, items: Sequence[Line | Gap]) -> None:
        """Write a block at once; a gap is an object in JSON and a notice on stderr otherwise."""
        if not items:
            return
        texts = [_object(item) for item in items] if self._form == "json" else self._texts(items)
        self._out.write(b"\n".join([*texts, b""]))
        self._out.flush()
        if self._form != "json":
            for item in items:
                if isinstance(item, Gap):
                    sys.stderr.write(f"--- {item} ---\n")

    def note(self, text: str) -> None:
        """One line."""
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def lose(self, text: str) -> None:
        """An object in JSON, and a notice on stderr otherwise."""
        if self._form == "json":
            self._out.write(_json({"kind": "LogLoss", "text": text}) + b"\n")
            self._out.flush()
        else:
            self.note(f"--- {text} ---")

    def close(self) -> None:
        """Nothing is kept back."""

    def _texts(self, items: Sequence[Line | Gap]) -> list[bytes]:
        lines = [item for item in items if isinstance(item, Line)]
        texts = [line.raw for line in lines] if self._form == "raw" else [line.shown for line in lines]
        if self._timestamps:
            return [b"%s %s" % (line.stamp.encode(), text) for line, text in zip(lines, texts, strict=True)]
        return texts


def _object(item: Line | Gap) -> bytes:
    if isinstance(item, Gap):
        values = {"kind": "LogGap", "source": item.source, "first": item.first, "last": item.last}
    else:
        writer = item.writer
        tag = {"rank": writer.rank, "device": writer.device, "node": writer.node, "number": item.number}
        stamp = {"time": item.stamp} if item.stamp else {}
        values = {"kind": "LogLine", **stamp, **tag, "line": item.text.decode("utf-8", "replace")}
    return _json(values)


def _json(values: Mapping[str, object]) -> bytes:
    return json.dumps({"apiVersion": "pnas/v1", **values}, ensure_ascii=False).encode()


class LiveView:
    """One line per device that changes in place; all other lines scroll above."""

    def __init__(self, console: Console, progress: Progress) -> None:
        from rich.live import Live  # noqa: PLC0415

        self._console = console
        self._progress = progress
        self._devices: dict[int, str] = {}
        self._notes: dict[int, str] = {}
        self._live = Live(self, console=console, refresh_per_second=4, vertical_overflow="ellipsis")

    def show(self, items: Sequence[Line | Gap]) -> None:
        """Scroll what is worth reading; step lines only move their device's line."""
        from rich.text import Text  # noqa: PLC0415

        if not self._live.is_started:  # not sooner: who calls this also closes, whatever comes in between
            self._live.start(refresh=True)
        scrolled: list[str] = []
        for item in items:
            if isinstance(item, Gap):
                scrolled.append(f"--- {item} ---")
                continue
            rank = item.writer.rank
            if rank is not None and rank not in self._devices:
                self._devices[rank] = item.writer.device or "?"
            if not (item.number is not None and item.text.startswith(b"step ")):
                scrolled.append(item.shown.decode("utf-8", "replace"))
                if rank is not None:
                    self._notes[rank] = item.text.decode("utf-8", "replace")
        if scrolled:
            # Log lines may hold colours, and cursor movements that would tear the display: rich keeps the former.
            self._console.print(Text("\n").join(map(Text.from_ansi, scrolled)), soft_wrap=True)

    def note(self, text: str) -> None:
        """Scroll it above the devices."""
        from rich.text import Text  # noqa: PLC0415

        self._console.print(Text(text, style="dim"), soft_wrap=True)

    def lose(self, text: str) -> None:
        """Scroll it above the devices, too."""
        self.note(f"--- {text} ---")

    def close(self) -> None:
        """Draw the last state once more and leave it on the screen."""
        self._live.stop()

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        """The devices' lines as they are now; rich calls this whenever it draws."""
        from rich.text import Text  # noqa: PLC0415

        latest = {
            f"rank {rank} {device}": self._progress.step(rank) or self._notes.get(rank, "")
            for rank, device in sorted(self._devices.items())
        }
        lines = device_lines(latest, options.max_width, ascii_only=options.ascii_only)
        yield Text("\n".join(lines), no_wrap=True, overflow="crop")
