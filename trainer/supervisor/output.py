"""From a worker's bytes to whole, tagged and numbered lines, on a slow or broken stdout and in one file per worker.

No line is lost, torn or mixed with another worker's. Neither stdout nor a file stops training: a slow reader slows the
workers down, a broken stdout leaves the files, and a broken file leaves stdout. The loop reports each of them once.
"""

import os
import select
import stat
from collections.abc import Callable
from pathlib import Path

from trainer.shared.errors import TrainerError

LINE_LIMIT = 1 << 20  # bytes after which a line without an end is split, so that memory stays bounded
_ERROR = b"error "
_PIPE_CHUNK = select.PIPE_BUF  # a pipe that polls as writable takes this much without blocking
_FILE_CHUNK = 1 << 18


class Tagger:
    """Numbers the lines of one rank, from 1, and remembers the lines that tell why its process died.

    Chunks go in, bytes for stdout and the log file come out. It handles lines by the chunk, because a write and a
    system call per line cost several times what the lines themselves do.
    """

    def __init__(self, tag: str) -> None:
        """`tag` stands before the number: `rank 3 npu:3`."""
        self._prefix = f"[{tag} #".encode()
        self.count = 0
        """The number of lines so far."""
        self.begin()

    def begin(self) -> None:
        """Begin the lines of a new process of the rank; the numbers go on."""
        self._rest = b""
        self.last_line = b""
        self.error_line: bytes | None = None
        """The last line that began with `error `: by convention the worker's own reason for giving up."""
        self.error_number = 0
        """The number of that line."""

    def feed(self, chunk: bytes) -> bytes:
        """Return the tagged form of every line that `chunk` completes."""
        *lines, rest = (self._rest + chunk).split(b"\n")
        if b"\r" in rest:
            done, rest = _split_progress(rest)
            lines += done
        while len(rest) > LINE_LIMIT:
            lines.append(rest[:LINE_LIMIT])
            rest = rest[LINE_LIMIT:]
        self._rest = rest
        return self._tag(lines)

    def close(self) -> bytes:
        """Return the tagged form of a last line that never got its end."""
        rest, self._rest = self._rest, b""
        return self._tag([rest]) if rest.strip(b"\r") else b""

    def say(self, text: str) -> bytes:
        """Return one whole line of the supervisor's own."""
        return self._tag([text.encode(errors="replace")])

    def _tag(self, lines: list[bytes]) -> bytes:
        if not lines:
            return b""
        text = b"\n".join(lines)  # one search in the whole chunk instead of one in each line
        if b"\r" in text:
            lines = [piece for line in lines for piece in _redrawn(line)]
        first, prefix = self.count + 1, self._prefix
        if _ERROR in text:
            for number, line in enumerate(lines, first):
                if line.startswith(_ERROR):
                    self.error_line, self.error_number = line, number
        self.last_line = next((line for line in reversed(lines) if line.strip()), self.last_line)
        self.count += len(lines)
        return b"".join([b"%b%d] %b\n" % (prefix, number, line) for number, line in enumerate(lines, first)])


def _redrawn(line: bytes) -> list[bytes]:
    """Split a progress bar at its carriage returns: every state that it showed becomes a line."""
    return [piece for piece in line.split(b"\r") if piece] or [b""]


def _split_progress(rest: bytes) -> tuple[list[bytes], bytes]:
    """Show an unfinished bar up to its last redraw; a CR at the end may still become CRLF."""
    shown, separator, current = rest.rpartition(b"\r")
    if current:
        return ([shown] if shown else []), current
    earlier, middle, last = shown.rpartition(b"\r")
    return ([earlier] if middle and earlier else []), last + separator


class Sink:
    """Writes as much as the reader takes and keeps the rest, so that no signal waits for a slow reader."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.pending = bytearray()
        self.error: str | None = None
        """Why no more lines can be written, from then on."""
        mode = os.fstat(fd).st_mode
        # A file never makes a writer wait for its reader, and epoll refuses it.
        self._blocks = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(fd)
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def write(self, data: bytes) -> None:
        """Add `data` and write what can be written at once."""
        if self.error is not None:
            return
        self.pending += data
        try:
            while self.pending and (not self._blocks or self._poll.poll(0)):
                written = os.write(self.fd, self.pending[: _PIPE_CHUNK if self._blocks else _FILE_CHUNK])
                del self.pending[:written]
        except BlockingIOError:  # another process has made the pipe non-blocking, and taken the room
            pass
        except OSError as error:
            self.error = error.strerror or type(error).__name__
            self.pending.clear()


class LogFile(Sink):
    """One worker's lines on disk, appended: the lines of an earlier run are never touched."""

    def __init__(self, path: Path, check_owner: Callable[[], None]) -> None:
        """Open the file.

        Args:
            check_owner: Called before a write; it raises a TrainerError if the folder is another run's by now, and an
                OSError while the lock cannot be read.
        """
        self.path = path
        self._check_owner = check_owner
        try:
            super().__init__(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666))
        except OSError as error:
            self.fd, self.error = -1, error.strerror or type(error).__name__

    def write(self, data: bytes) -> None:
        """Add `data`, and write it at once if the folder still belongs to the run; it waits while that is unknown."""
        if self.error is None and (data or self.pending):
            try:
                self._check_owner()
            except OSError:
                self.pending += data
                return
            except TrainerError as loss:
                self.error = str(loss)
        super().write(data)

    def close(self) -> None:
        """Write what waits, if possible, and close the file."""
        self.write(b"")
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
