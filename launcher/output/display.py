"""Where a job's lines go: a live display in a terminal, plain lines elsewhere, and one file per device.

`live` draws in the terminal. Only that module imports rich, so that a pipe or a CI job does not pay for it.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Protocol, TextIO

from launcher import API_VERSION
from launcher.errors import RequestError
from launcher.jobs import LogLoss
from launcher.output.lines import LogGap, LogLine
from launcher.output.progress import JobProgress

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
        self._err.write(f"{text}\n")
        self._err.flush()

    def close(self) -> None:
        """Do nothing: all lines have been written."""

    def _text(self, line: LogLine) -> bytes:
        text = line.raw if self._form == "raw" else line.shown
        return b"%s %s" % (line.timestamp.encode(), text) if self._timestamps else text


def _object(piece: LogLine | LogGap | LogLoss) -> bytes:
    values: Mapping[str, object]
    if isinstance(piece, LogLine):
        writer = piece.writer
        tag = {"rank": writer.rank, "device": writer.device, "node": writer.node, "number": piece.number}
        time = {"time": piece.timestamp} if piece.timestamp else {}
        values = {"kind": "LogLine", **time, **tag, "line": piece.text.decode("utf-8", "replace")}
    elif isinstance(piece, LogGap):
        values = {"kind": "LogGap", "source": piece.source, "first": piece.first, "last": piece.last}
    else:
        values = {"kind": "LogLoss", "text": str(piece)}
    return json.dumps({"apiVersion": API_VERSION, **values}, ensure_ascii=False).encode()


class LogFiles:
    """One file per device in one folder: `rank-3.log`, `node-0.log`, and `untagged.log` for lines without a tag.

    Lines are written as the trainer wrote them, numbers included, and appended to what an earlier follower saved. A
    context: its end closes the files.

    Raises:
        RequestError: the folder cannot be created.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, BinaryIO] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(f"--save {folder}: cannot be made: {error.strerror}; choose another folder") from error

    def write(self, pieces: Sequence[LogLine | LogGap]) -> None:
        """Append each line to its device's file, and a note in place of missing lines."""
        for piece in pieces:
            if isinstance(piece, LogLine):
                source, line = piece.writer.source, piece.raw
            else:
                source, line = piece.source, f"--- {piece} ---".encode()
            with _file_named(file := self._file(source)):
                file.write(line + b"\n")
        for file in self._files.values():
            with _file_named(file):
                file.flush()

    def _file(self, source: str) -> BinaryIO:
        if source not in self._files:
            kind, _, rest = source.partition(" ")
            name = f"{kind}-{rest.partition(' ')[0]}" if source else "untagged"
            self._files[source] = (self._folder / f"{name}.log").open("ab")
        return self._files[source]

    def __enter__(self) -> "LogFiles":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for file in self._files.values():
            # After an error: write errors were already reported.
            with suppress(OSError) if kind is not None else _file_named(file):
                file.close()


@contextmanager
def _file_named(file: BinaryIO) -> Iterator[None]:
    """Add the file's name to an error: a full disk does not say which file it holds."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, file.name) from error
