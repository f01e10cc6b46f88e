r"""Reading a log file that is still being written: blocks of whole lines, and the last part of it.

A line is delivered when its `\n` has been written, so nobody ever sees half of one; only the last line of a job
that died in the middle of it is delivered without.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

_BLOCK = 1 << 18
_POLL_S = 0.05


def read_blocks(path: Path, *, start: int = 0, ended: Callable[[], bool]) -> Iterator[bytes]:
    r"""Blocks of whole lines from the first line that begins at `start` or later, until `ended()`.

    An empty block comes whenever all that was written has been delivered. What was written before `ended()` turned
    true is always delivered. A file that does not exist yet is waited for.
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
            # Asked before the last read, so that nothing which was written before the end is left behind.
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
    """The whole lines among the last `size` bytes; nothing if there is no such file yet."""
    if not path.exists():
        return b""
    with path.open("rb") as file:
        start = max(0, path.stat().st_size - size)
        file.seek(start)
        if start:
            file.readline()
        return file.read()


def offset_at(clock: Path, moment: float) -> int:
    """How long the log was at `moment`, rounded down to what was noted."""
    offset = 0
    if clock.exists():
        for line in clock.read_text(encoding="ascii").splitlines():
            noted, _, size = line.partition(" ")
            if not size or float(noted) > moment:
                break
            offset = int(size)
    return offset
