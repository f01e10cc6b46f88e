"""Where lines go: a stdout that may be slow, full or gone, and one file per worker that may be full too.

Neither stops training. A slow reader slows the workers down (nothing is lost); a broken stdout leaves the files, and a
broken file leaves stdout; either is said once, in the other.
"""

import os
import select
import stat
from pathlib import Path

PIPE_CHUNK = select.PIPE_BUF  # a pipe that polls as writable takes this much without blocking
FILE_CHUNK = 1 << 18


class Stdout:
    """Writes as much as the reader takes and keeps the rest, so that no signal waits for a slow reader."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.pending = bytearray()
        self.error: str | None = None
        """Why nothing more can be written, once that is so."""
        mode = os.fstat(fd).st_mode
        # A file never makes a writer wait for its reader, and epoll refuses it.
        self.blocks = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(fd)
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def write(self, data: bytes) -> None:
        """Add `data` and write what can be written at once."""
        if self.error is None:
            self.pending += data
            self.flush()

    def flush(self) -> None:
        """Write what can be written without waiting."""
        try:
            while self.pending and self._writable():
                written = os.write(self.fd, self.pending[: PIPE_CHUNK if self.blocks else FILE_CHUNK])
                del self.pending[:written]
        except BlockingIOError:  # somebody else has made the pipe non-blocking, and taken the room
            pass
        except OSError as error:
            self.error = error.strerror or type(error).__name__
            self.pending.clear()

    def _writable(self) -> bool:
        return not self.blocks or bool(self._poll.poll(0))


class LogFile:
    """One worker's lines on disk, appended: an earlier run's are never touched."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.error: str | None = None
        """Why nothing more is written, once that is so."""
        self._fd = -1
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            self.error = error.strerror or type(error).__name__

    def write(self, data: bytes) -> None:
        """Append `data`, or note why it cannot be."""
        view = memoryview(data)
        try:
            while view and self.error is None:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            self.error = error.strerror or type(error).__name__

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
