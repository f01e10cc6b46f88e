r"""Reading a log file while a job writes it: blocks of whole lines, and its end.

A reader gets a line only with its `\n`, so it never sees half a line. The exception is the last line of a job that
died while it wrote.
"""

import re
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from itertools import accumulate, islice, takewhile
from pathlib import Path

_BLOCK = 1 << 18
_POLL_S = 0.05
_NOTE = re.compile(rb"^(\d{1,11}\.\d+) (\d{1,18})\n", re.MULTILINE)


def read_blocks(path: Path, *, start: int = 0, ended: Callable[[], bool]) -> Iterator[bytes]:
    r"""Wait for the file, and yield blocks of whole lines from the first line at or after `start`, until `ended()`.

    An empty block says that the reader has all lines so far. All bytes from before the end are yielded.
    """
    while not path.exists():
        if ended():
            return
        yield b""
        time.sleep(_POLL_S)
    with path.open("rb") as file:
        if start:
            file.seek(line_start(path, start))
        rest: list[bytes] = []
        while True:
            # Ask before the last read, so that it reads everything from before the end.
            last = ended()
            while block := file.read(_BLOCK):
                whole, newline, begun = block.rpartition(b"\n")
                if newline:
                    yield b"".join((*rest, whole, newline))
                    rest = []
                if begun:
                    rest.append(begun)
            if last:
                break
            yield b""
            time.sleep(_POLL_S)
        if rest:
            yield b"".join(rest)


def read_tail(path: Path, size: int = _BLOCK) -> bytes:
    """Return the whole lines among the last `size` bytes; nothing before the file exists."""
    if not path.exists():
        return b""
    with path.open("rb") as file:
        start = max(0, path.stat().st_size - size)
        file.seek(start)
        if start:
            file.readline()
        return file.read()


class LineTimes:
    """When the lines of a log were written, to about a second: the runner notes how long the log is by time."""

    def __init__(self, clock: Path) -> None:
        self._clock = clock
        self._sizes: list[int] = []
        self._times: list[float] = []

    def of(self, position: int, block: bytes, latest: float) -> list[str]:
        """Return the time of each line, in ISO 8601 and UTC.

        Args:
            position: where the block begins in the log.
            latest: the time of a line after the last note, in seconds since 1970.
        """
        if not self._sizes or self._sizes[-1] < position + len(block):
            notes = list(_notes(self._clock))
            self._sizes, self._times = [size for _, size in notes], [moment for moment, _ in notes]
        ends = accumulate((len(line) + 1 for line in block.removesuffix(b"\n").split(b"\n")), initial=position)
        indices = (bisect_left(self._sizes, end) for end in islice(ends, 1, None))
        moments = (self._times[index] if index < len(self._times) else latest for index in indices)
        return [datetime.fromtimestamp(moment, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ") for moment in moments]


def line_start(path: Path, position: int) -> int:
    """Return where the first line at or after a position begins."""
    with path.open("rb") as file:
        file.seek(max(0, position - 1))
        if position:
            file.readline()
        return file.tell()


def _notes(clock: Path) -> Iterator[tuple[float, int]]:
    """Yield the times at which the log's length was noted, and the lengths in bytes.

    A full disk or a power failure leaves half a note, or NUL bytes; such notes do not count.
    """
    if clock.exists():
        for note in _NOTE.finditer(clock.read_bytes()):
            yield float(note[1]), int(note[2])


def offset_at(clock: Path, moment: float) -> int:
    """Return how long the log was at `moment`, by the last note before it."""
    earlier = takewhile(lambda note: note[0] <= moment, _notes(clock))
    return max((size for _, size in earlier), default=0)
