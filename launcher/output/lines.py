"""Tagged log lines, taken apart by device, and the proof by their numbers that none is missing or repeated.

A connection cannot know what it did not deliver; numbered lines can. The trainer writes each line as
`[rank 3 cpu:3 #1042] text` (a worker's) or `[node 0 #5] text` (its supervisor's), numbered from 1 within that tag; the
supervisor's `ended lines="3:1042 4:977" outcome=failed` says how many there are of each rank, so that a lost end is
noticed too.
This module is pure: bytes go in, lines and gaps come out. Where the bytes come from is a backend's business.
"""

import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import repeat
from typing import NamedTuple

_TOTALS = re.compile(rb'ended lines="([\d: ]*)"(?: outcome=[a-z]+)?')
_LINE = re.compile(rb"((?:\[(rank \d{1,9} [a-z]+:\d+|node \d{1,9}) #(\d{1,18})\] ?)?([^\n]*))\n")
"""A whole line; its tag and its number if it has one, and its text."""


class Writer(NamedTuple):
    """Who wrote a line: `source` is `rank 3 cpu:3`, `node 0`, or nothing for a line without a tag.

    `prefix` stands before the line's text where people read it: the tag without the number.
    """

    source: str = ""
    rank: int | None = None
    device: str | None = None
    node: int | None = None
    prefix: bytes = b""


_NOBODY = Writer()


class Line(NamedTuple):
    """One line, without its line end. `number` is None for a line without a tag.

    `stamp` says when it was written, if the backend knows it.
    """

    raw: bytes
    text: bytes
    writer: Writer = _NOBODY
    number: int | None = None
    stamp: str = ""

    @property
    def shown(self) -> bytes:
        """The line as people read it."""
        return self.writer.prefix + self.text


@dataclass(frozen=True, slots=True)
class Gap:
    """Lines `first` to `last` of `source` were not delivered (so far)."""

    source: str
    first: int
    last: int

    @property
    def count(self) -> int:
        """How many lines that are."""
        return self.last - self.first + 1

    def __str__(self) -> str:
        """`lines 4-6 of rank 1 cpu:1 are missing`."""
        if self.count == 1:
            return f"line {self.first} of {self.source} is missing"
        return f"lines {self.first}-{self.last} of {self.source} are missing"


def parse_lines(block: bytes, stamps: Sequence[str] = ()) -> list[Line]:
    """Take the lines of `block` apart; the last one may be without its end.

    Args:
        stamps: one for each line, or none.
    """
    found = _LINE.findall(block if block.endswith(b"\n") else block + b"\n")
    return [
        Line(raw, text, _writer(tag), int(number), stamp) if tag else Line(raw, text, stamp=stamp)
        for (raw, tag, number, text), stamp in (zip(found, stamps, strict=True) if stamps else zip(found, repeat("")))
    ]


@lru_cache(maxsize=1024)
def _writer(tag: bytes) -> Writer:
    """Whose tag it is; a job has few of them, and a million lines."""
    source = tag.decode()
    kind, number, *device = source.split(" ")
    rank, node = (int(number), None) if kind == "rank" else (None, int(number))
    return Writer(source, rank, device[0] if device else None, node, b"[%s] " % tag)


class _Missing:
    """Numbers that were left out, as ranges: a rotation takes hundreds of thousands at once."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []
        """First and last of each, in order."""

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in self.ranges)

    def add(self, first: int, last: int) -> None:
        """These are above all that are missing already."""
        if self.ranges and self.ranges[-1][1] == first - 1:
            first = self.ranges.pop()[0]
        self.ranges.append((first, last))

    def remove(self, number: int) -> bool:
        """Whether it was missing."""
        index = bisect_right(self.ranges, (number, math.inf)) - 1
        if index < 0 or self.ranges[index][1] < number:
            return False
        first, last = self.ranges[index]
        left = ((first, number - 1), (number + 1, last))
        self.ranges[index : index + 1] = [part for part in left if part[0] <= part[1]]
        return True


@dataclass
class _Count:
    """What one tag has delivered: everything below `expected` but for `missing`."""

    expected: int
    delivered: int = 0
    missing: _Missing = field(default_factory=_Missing)


class Demultiplexer:
    """Splits a stream into lines, drops repeated ones, and keeps the books of what each device delivered.

    Args:
        from_start: the stream begins with the first line, so a first number above 1 is a gap. False when the
            reader asked for a later part.
    """

    def __init__(self, *, from_start: bool = True) -> None:
        self._from_start = from_start
        self._counts: dict[tuple[str, str], _Count] = {}
        self._devices: set[str] = set()

    def feed(self, block: bytes, stream: str = "", stamps: Sequence[str] = ()) -> list[Line | Gap]:
        """The new lines of `block`, which ends at a line's end, and a gap where numbers were left out.

        A job has millions of lines, nearly all of which come in order: those are dealt with here, at once.

        Args:
            stream: whose lines they are: each stream numbers its lines from 1.
            stamps: one for each line, or none.
        """
        if not block:
            return []
        found: list[Line | Gap] = []
        writer, count = _NOBODY, None
        for line in parse_lines(block, stamps):
            number = line.number
            if number is None:
                found.append(line)
                continue
            if line.writer is not writer or count is None:
                writer = line.writer
                count = self._counts.get((stream, writer.source))
            if count is not None and number == count.expected:
                count.expected += 1
                count.delivered += 1
                found.append(line)
            else:
                found += self._account(line, number, stream)
            if writer.node is not None and (totals := _TOTALS.fullmatch(line.text)):
                found += self._close(totals[1].decode(), stream)
        return found

    def _account(self, line: Line, number: int, stream: str) -> Iterator[Line | Gap]:
        count = self._counts.get((stream, line.writer.source))
        if count is None:
            count = self._counts[stream, line.writer.source] = _Count(expected=1 if self._from_start else number)
            if line.writer.rank is not None:
                self._devices.add(line.writer.source)
        expected = count.expected
        if number > expected:
            count.missing.add(expected, number - 1)
            yield Gap(line.writer.source, expected, number - 1)
        elif number < expected and not count.missing.remove(number):
            return
        count.expected = max(expected, number + 1)
        count.delivered += 1
        yield line

    def _close(self, totals: str, stream: str) -> Iterator[Gap]:
        """What is missing at the end of each rank, by its supervisor's count."""
        for rank, _, total in (pair.partition(":") for pair in totals.split()):
            prefix = f"rank {rank} "
            known = (source for of, source in self._counts if of == stream and source.startswith(prefix))
            source = next(known, f"rank {rank}")
            # Who asked for a later part only may have come after a rank's last line.
            begun = _Count(expected=1 if self._from_start else int(total) + 1)
            count = self._counts.setdefault((stream, source), begun)
            if count.expected <= int(total):
                gap = Gap(source, count.expected, int(total))
                count.missing.add(gap.first, gap.last)
                count.expected = gap.last + 1
                yield gap

    @property
    def lines(self) -> int:
        """Numbered lines that the devices delivered, each counted once."""
        return sum(count.delivered for (_, source), count in self._counts.items() if source in self._devices)

    @property
    def devices(self) -> int:
        """Devices that delivered a line."""
        return len(self._devices)

    @property
    def missing(self) -> int:
        """Lines whose number was left out and never came, the supervisors' included."""
        return sum(len(count.missing) for count in self._counts.values())

    def gaps(self) -> list[Gap]:
        """What is still missing, in order, as ranges."""
        counts = sorted(self._counts.items(), key=lambda pair: pair[0])
        return [Gap(source, *bounds) for (_, source), count in counts for bounds in count.missing.ranges]


@dataclass(frozen=True)
class Selection:
    """Which lines a reader wants. None means all."""

    rank: int | None = None
    device: str | None = None
    pattern: re.Pattern[bytes] | None = None

    @property
    def everything(self) -> bool:
        """Nothing is left out."""
        return self == Selection()

    def wants(self, line: Line) -> bool:
        """Whether the reader wants this line. A device is `cpu:3`, or its number `3`."""
        if self.rank is not None and line.writer.rank != self.rank:
            return False
        device = line.writer.device or ""
        if self.device is not None and self.device not in (device, device.rpartition(":")[2]):
            return False
        return self.pattern is None or self.pattern.search(line.text) is not None


EVERYTHING = Selection()
