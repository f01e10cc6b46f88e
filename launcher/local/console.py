r"""Reading a log file while a job writes it: blocks of whole lines, and its end.

A reader gets a line only with its `\n`, so it never sees half a line. The exception is the last line of a job that
died while it wrote.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

_BLOCK = 1 << 18
_POLL_S = 0.05


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
            file.seek(start - 1)
            file.readline()
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


def offset_at(clock: Path, moment: float) -> int:
    """Return how long the log was at `moment`, by the last note before it."""
    offset = 0
    if clock.exists():
        for line in clock.read_text(encoding="ascii").splitlines():
            note_time, _, size = line.partition(" ")
            if not size or float(note_time) > moment:
                break
            offset = int(size)
    return offset
