"""A stop that wakes threads which wait for a time, and threads which wait for a socket.

`threading.Event` wakes only the first kind, and whoever pressed Ctrl-C does not want to wait for the second.
"""

import os
import threading
import weakref


class Stop:
    """Set once, for good; safe to use from any thread."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._read, write = os.pipe()
        self._write = [write]
        weakref.finalize(self, _close, self._read, self._write)

    def set(self) -> None:
        """Wake everybody."""
        with self._lock:
            if not self._event.is_set():
                self._event.set()
                # A pipe without a writer is readable for all, and stays so.
                os.close(self._write.pop())

    def is_set(self) -> bool:
        """Whether it was."""
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleep, but not beyond the stop; whether it was set."""
        return self._event.wait(seconds)

    def fileno(self) -> int:
        """Readable once the stop is set; not to be read from."""
        return self._read


def _close(read: int, write: list[int]) -> None:
    for descriptor in (read, *write):
        os.close(descriptor)
