"""Where a job's lines are shown: a live display in a terminal, plain lines elsewhere.

`live` draws in the terminal. Only that module imports rich, so that a pipe or a CI job does not pay for it.

The lines of a job are data: a terminal would obey their control characters, so they are shown as escapes. A pipe, a
file and `--raw` get the bytes as they are.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import BinaryIO, Literal, Protocol, TextIO

from launcher.jobs import LogLoss
from launcher.output.lines import LogGap, LogLine
from launcher.output.progress import JobProgress
from trainer.shared.documents import API_VERSION
from trainer.shared.text import visible, visible_bytes

Format = Literal["text", "raw", "json"]


class Display(Protocol):
    """Shows lines as they come."""

    def show(self, pieces: Sequence[LogLine | LogGap | LogLoss]) -> None:
        """Show these lines, and say where lines are missing or lost."""

    def note(self, text: str) -> None:
        """Show a text that is not part of the log."""

    def close(self) -> None:
        """Leave the output in a state that others can print to."""


def open_display(form: Format, progress: JobProgress, *, live: bool, timestamps: bool) -> Display:
    """Return a live display if it is asked for and the terminal can move its cursor; plain lines otherwise."""
    if live and form == "text" and sys.stdout.isatty():
        from launcher.output.live import live_display  # noqa: PLC0415  # rich: only a terminal pays for it

        display = live_display(progress)
        if display is not None:
            return display
    return PlainDisplay(sys.stdout.buffer, sys.stderr, form, timestamps=timestamps)


class PlainDisplay:
    """Lines as text without their numbers, raw as the trainer wrote them, or as one JSON object each."""

    def __init__(self, out: BinaryIO, err: TextIO, form: Format = "text", *, timestamps: bool = False) -> None:
        self._out = out
        self._err = err
        self._form = form
        self._timestamps = timestamps
        self._escapes = form == "text" and out.isatty()

    def show(self, pieces: Sequence[LogLine | LogGap | LogLoss]) -> None:
        """Write a block at once. Missing and lost lines are objects in JSON, and notices on `err` otherwise."""
        if self._form == "json":
            texts = [_object(piece) for piece in pieces]
        else:
            texts = [self._text(piece) for piece in pieces if isinstance(piece, LogLine)]
        if texts:
            self._out.write(b"\n".join([*texts, b""]))
            self._out.flush()
        if self._form != "json":
            for piece in pieces:
                if not isinstance(piece, LogLine):
                    self.note(f"--- {piece} ---")

    def note(self, text: str) -> None:
        """Write one line to `err`."""
        self._err.write(f"{visible(text)}\n")
        self._err.flush()

    def close(self) -> None:
        """Do nothing: all lines have been written."""

    def _text(self, line: LogLine) -> bytes:
        text = line.raw if self._form == "raw" else line.shown
        text = visible_bytes(text).encode() if self._escapes else text
        return b"%s %s" % (line.timestamp.encode(), text) if self._timestamps else text


def _object(piece: LogLine | LogGap | LogLoss) -> bytes:
    values: Mapping[str, object]
    if isinstance(piece, LogLine):
        writer = piece.writer
        tag = {"rank": writer.rank, "device": writer.device, "node": writer.node, "number": piece.number}
        text = piece.text.decode("utf-8", "replace")
        values = {"kind": "LogLine", "time": piece.timestamp or None, **tag, "line": text}
    elif isinstance(piece, LogGap):
        values = {"kind": "LogGap", "source": piece.source, "first": piece.first, "last": piece.last}
    else:
        values = {"kind": "LogLoss", "text": str(piece)}
    # Of all control characters, JSON leaves only DEL as it is.
    return json.dumps({"apiVersion": API_VERSION, **values}).replace("\x7f", r"\u007f").encode()
