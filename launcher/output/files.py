"""One file per device in a folder: a job's lines as the trainer wrote them, each once, however often they are read.

A second reading continues the files of the first one. Which lines are in a file is read from the file itself, so a
reader that was killed leaves nothing wrong behind: numbered lines are known by their number, other lines by their text.
Each pod and each attempt numbers its lines from 1; a line `--- lines of pod … ---` says whose lines follow.
"""

import fcntl
import os
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from launcher.errors import RequestError
from launcher.output.lines import Demultiplexer, LogGap, LogLine, parse_lines

_BLOCK = 1 << 20
_OWNER = re.compile(rb"--- lines of (.*) ---")
_NOTE = re.compile(rb"--- lines? (?:\d+-)?(\d{1,18}) of (.+) (?:is|are) missing ---")
_LIKE_OURS = re.compile(rb" *--- lines? .* ---")
_NAMES = re.compile(r"(?:rank-\d+|node-\d+|untagged)\.log")


class LogFiles:
    """The files `rank-3.log`, `node-0.log`, and `untagged.log` for lines without a tag.

    A context: its end closes the files. Links are not followed: a folder that others can write to must not lead the
    lines elsewhere.

    Raises:
        RequestError: the folder cannot be used; see `check_folder`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, _LogFile] = {}
        check_folder(folder)
        self._lock = _lock(folder)

    def write(self, pieces: Sequence[LogLine | LogGap], stream: str = "") -> None:
        """Append each line to its device's file unless the file has it, and a note in place of missing lines.

        Args:
            stream: the source of the lines; each stream numbers its lines from 1.

        Raises:
            OSError: a file cannot be opened or written; it has the file's name.
        """
        by_source: defaultdict[str, list[LogLine | LogGap]] = defaultdict(list)
        for piece in pieces:
            by_source[piece.writer.source if isinstance(piece, LogLine) else piece.source].append(piece)
        for source, own in by_source.items():
            name = file_name(source)
            if name not in self._files:
                self._files[name] = _LogFile(self._folder / name)
            self._files[name].write(own, stream)

    def __enter__(self) -> "LogFiles":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._lock)
        for file in self._files.values():
            # After an error: write errors were already reported.
            with suppress(*(() if kind is None else (OSError,))):
                file.close()


def check_folder(folder: Path | None) -> None:
    """Create the folder if it is missing, and check that lines can be saved there. Without a folder do nothing.

    Raises:
        RequestError: it cannot be created, has a link or something else in place of a log file, or is in use.
    """
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = [path for path in folder.iterdir() if _NAMES.fullmatch(path.name) and not _is_file(path)]
    except OSError as error:
        raise RequestError(f"--save {folder}: cannot be used: {error.strerror}; choose another folder") from error
    if others:
        kind = "a link" if others[0].is_symlink() else "no file"
        raise RequestError(f"--save {folder}: {others[0].name} is {kind}; remove it, or choose another folder")
    os.close(_lock(folder))


def _lock(folder: Path) -> int:
    """Return a descriptor of the folder that keeps other launchers out of it until it is closed."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise RequestError(f"--save {folder}: another launcher saves there now; choose another folder") from error
    except OSError:
        pass  # a file system without locks
    return descriptor


def _is_file(path: Path) -> bool:
    return stat.S_ISREG(path.lstat().st_mode)


def file_name(source: str) -> str:
    """Return the name of the file for the lines of `rank 3 npu:3`, `node 0`, or of no source."""
    kind, _, rest = source.partition(" ")
    return f"{kind}-{rest.partition(' ')[0]}.log" if source else "untagged.log"


class _LogFile:
    """One file: its lines by stream, and an end to which new lines are appended."""

    def __init__(self, path: Path) -> None:
        self._lines = Demultiplexer()
        self._texts: defaultdict[str, Counter[bytes]] = defaultdict(Counter)
        self._stream = ""
        self._file: BinaryIO = open(path, "a+b", opener=_open_no_link)  # noqa: SIM115  # closed by `close`
        with _file_named(self._file):
            self._load()

    def write(self, pieces: Sequence[LogLine | LogGap], stream: str) -> None:
        texts = [text for piece in pieces for text in self._new_texts(piece, stream)]
        if texts and stream != self._stream:
            texts.insert(0, b"--- lines of %s ---" % stream.encode())
            self._stream = stream
        if texts:
            with _file_named(self._file):
                self._file.write(b"\n".join((*texts, b"")))
                self._file.flush()

    def close(self) -> None:
        with _file_named(self._file):
            self._file.close()

    def _new_texts(self, piece: LogLine | LogGap, stream: str) -> list[bytes]:
        if isinstance(piece, LogGap):
            return [_note(gap) for gap in self._lines.expect(piece.source, piece.last, stream)]
        if piece.number is not None:
            new = self._lines.feed(piece.raw + b"\n", stream)
            # Not the gaps that a supervisor's last line reveals in the files of its ranks.
            return [
                line.raw if isinstance(line, LogLine) else _note(line)
                for line in new
                if isinstance(line, LogLine) or line.source == piece.writer.source
            ]
        # A line of the job must not be taken for a line of this module.
        text = b" " + piece.raw if _LIKE_OURS.fullmatch(piece.raw) else piece.raw
        if self._texts[stream][text] > 0:
            self._texts[stream][text] -= 1
            return []
        return [text]

    def _load(self) -> None:
        """Read which lines the file has. Half a last line, which a killed reader left, does not count."""
        self._file.seek(0)
        rest = b""
        while data := self._file.read(_BLOCK):
            whole, newline, rest = (rest + data).rpartition(b"\n")
            if newline:
                self._note_lines(whole + newline)
        if rest:
            self._file.write(b"\n")

    def _note_lines(self, block: bytes) -> None:
        numbered: list[bytes] = []
        for line in parse_lines(block):
            if line.number is not None:
                numbered.append(line.raw)
                continue
            self._feed(numbered)
            if owner := _OWNER.fullmatch(line.raw):
                self._stream = owner[1].decode("utf-8", "replace")
            elif note := _NOTE.fullmatch(line.raw):
                list(self._lines.expect(note[2].decode("utf-8", "replace"), int(note[1]), self._stream))
            else:
                self._texts[self._stream][line.raw] += 1
        self._feed(numbered)

    def _feed(self, numbered: list[bytes]) -> None:
        self._lines.feed(b"\n".join((*numbered, b"")) if numbered else b"", self._stream)
        numbered.clear()


def _note(gap: LogGap) -> bytes:
    return f"--- {gap} ---".encode()


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


@contextmanager
def _file_named(file: BinaryIO) -> Iterator[None]:
    """Add the file's name to an error: a full disk does not say which file it holds."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, file.name) from error
