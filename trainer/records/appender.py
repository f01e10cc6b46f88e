"""A file that grows at its end, and loses and repeats no byte though its disk may be full for a while.

A run may be days old when its disk fills up. What cannot be written waits in memory, so that it costs a warning and
not the run; a write that was cut short goes on at the byte where it was cut.
"""

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

from trainer.run.folder import writing

Tell = Callable[[str], None]
"""Takes a line for the user."""


class Appender(contextlib.AbstractContextManager["Appender"]):
    """One file, of which this process alone is the writer. Threads may write and sync at the same time.

    Bytes stay in memory until a `sync` has brought them to the disk: a file server may report only then that it has no
    room, after the system has forgotten what it was given. Nothing bounds them but the length of the run: records take
    a few hundred bytes a step.
    """

    def __init__(self, path: Path, *, fresh: bool, tell: Tell) -> None:
        """Open `path`: as a new file if `fresh`, else to go on after what it has.

        Args:
            tell: told once that the file cannot be written, and once that it can again, perhaps from another thread.

        Raises:
            TrainerError: the file cannot be opened.
        """
        self.path = path
        self._tell = tell
        self._lock = threading.Lock()
        self._syncing = threading.Lock()
        """One sync at a time: two would both count the same bytes as those that the disk has."""
        with writing(path):
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | (os.O_EXCL if fresh else 0), 0o666)
            self._begin = os.fstat(self._file).st_size
        self._recent = bytearray()
        """What follows the first `_begin` bytes, which the disk has."""
        self._taken = 0
        """How many of these bytes the system has taken."""
        self._troubled = False

    def write(self, data: bytes) -> None:
        """Add bytes; those that cannot be written now are tried again at each later call."""
        with self._lock:
            self._recent += data
            try:
                self._push()
            except OSError as error:
                if not self._troubled:
                    self._tell(f"{self.path}: cannot be written: {error.strerror or error}; its lines wait in memory")
                self._troubled = True

    def sync(self) -> None:
        """Wait until the disk has all that was written before the call; others may write meanwhile.

        Raises:
            TrainerError: it does not take it; the bytes wait on.
        """
        with writing(self.path), self._syncing:
            with self._lock:
                self._push()
                taken = self._taken
            try:
                os.fsync(self._file)
            except OSError:
                with self._lock:
                    self._taken = 0
                raise
            with self._lock:
                self._begin += taken
                self._taken -= taken
                del self._recent[:taken]

    def _push(self) -> None:
        while self._taken < len(self._recent):
            with memoryview(self._recent)[self._taken :] as rest:
                self._taken += os.pwrite(self._file, rest, self._begin + self._taken)
        if self._troubled:
            self._troubled = False
            self._tell(f"{self.path}: is written again, and lacks nothing")

    def __exit__(self, *_error: object) -> None:
        self.write(b"")
        with self._syncing, self._lock, contextlib.suppress(OSError):
            # A late sync, or a second exit, must not find the next file that gets this number.
            file, self._file = self._file, -1
            os.close(file)
