"""Tagged log lines, split by device, and the proof by their numbers that no line is missing or repeated.

A connection cannot know which lines it did not deliver; numbered lines can. The trainer writes each line as
`[rank 3 cpu:3 #1042] text` (a worker's) or `[node 0 #5] text` (its supervisor's), numbered from 1 within that tag. The
supervisor's `ended lines="3:1042 4:977" outcome=failed` gives each rank's number of lines, so that a lost end is
noticed too. Pure: bytes go in, lines and gaps come out.
"""

import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import repeat
from typing import NamedTuple

_TOTALS = re.compile(rb'ended lines="((?:\d{1,9}:\d{1,18}(?: (?=\d)|(?=")))*)"(?: outcome=[a-z]+)?')
_LINE = re.compile(rb"((?:\[(rank \d{1,9} [a-z]+:\d+|node \d{1,9}) #(\d{1,18})\] ?)?([^\n]*))\n")
"""A whole line; its tag and its number if it has one, and its text."""


class Writer(NamedTuple):
    """The writer of a line: `source` is `rank 3 cpu:3`, `node 0`, or empty for a line without a tag.

    `prefix` is shown before the line's text: the tag without the number.
    """

    source: str = ""
    rank: int | None = None
    device: str | None = None
    node: int | None = None
    prefix: bytes = b""


_UNKNOWN = Writer()


class LogLine(NamedTuple):
    """One line, without its line end. A line without a tag has no `number`.

    `timestamp` says when it was written, if that is known.
    """

    raw: bytes
    text: bytes
    writer: Writer = _UNKNOWN
    number: int | None = None
    timestamp: str = ""

    @property
    def shown(self) -> bytes:
        """The line for the user: its text after its writer's prefix."""
        return self.writer.prefix + self.text


@dataclass(frozen=True, slots=True)
class LogGap:
    """Lines `first` to `last` of `source` were not delivered (so far)."""

    source: str
    first: int
    last: int

    def __str__(self) -> str:
        """`lines 4-6 of rank 1 cpu:1 are missing`."""
        if self.first == self.last:
            return f"line {self.first} of {self.source} is missing"
        return f"lines {self.first}-{self.last} of {self.source} are missing"


def parse_lines(block: bytes, timestamps: Sequence[str] = ()) -> list[LogLine]:
    """Return the lines of `block`; the last one can lack its end.

    Args:
        timestamps: one for each line, or none at all.
    """
    matches = _LINE.findall(block if block.endswith(b"\n") else block + b"\n")
    return [
        LogLine(raw, text, _writer(tag), int(number), time) if tag else LogLine(raw, text, timestamp=time)
        for (raw, tag, number, text), time in (
            zip(matches, timestamps, strict=True) if timestamps else zip(matches, repeat(""))
        )
    ]


@lru_cache(maxsize=1024)
def _writer(tag: bytes) -> Writer:
    """Return the writer with this tag; a job has few of them, and a million lines."""
    source = tag.decode()
    kind, number, *device = source.split(" ")
    rank, node = (int(number), None) if kind == "rank" else (None, int(number))
    return Writer(source, rank, device[0] if device else None, node, b"[%s] " % tag)


class _Missing:
    """Missing numbers, as ranges: a rotation can take hundreds of thousands at once."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []
        """The first and the last number of each, in order."""

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in self.ranges)

    def add(self, first: int, last: int) -> None:
        """Add the numbers `first` to `last`, which are larger than all missing ones."""
        if self.ranges and self.ranges[-1][1] == first - 1:
            first = self.ranges.pop()[0]
        self.ranges.append((first, last))

    def remove(self, number: int) -> bool:
        """Remove a number; return whether it was missing."""
        index = bisect_right(self.ranges, (number, math.inf)) - 1
        if index < 0 or self.ranges[index][1] < number:
            return False
        first, last = self.ranges[index]
        parts = ((first, number - 1), (number + 1, last))
        self.ranges[index : index + 1] = [part for part in parts if part[0] <= part[1]]
        return True


@dataclass
class _Count:
    """The delivered lines of one tag: all below `expected` except the `missing` ones."""

    expected: int
    delivered: int = 0
    missing: _Missing = field(default_factory=_Missing)


class Demultiplexer:
    """Splits a stream into lines, drops repeated lines, and counts what each device delivered.

    Args:
        from_start: the stream begins with the first line, so a first number above 1 is a gap. False if the reader
            asked for a later part.
    """

    def __init__(self, *, from_start: bool = True) -> None:
        self._from_start = from_start
        self._counts: dict[tuple[str, str], _Count] = {}
        self._devices: dict[str, Writer] = {}
        self.ended_nodes: set[int] = set()
        """The nodes whose supervisor has said how many lines there are."""

    def feed(self, block: bytes, stream: str = "", timestamps: Sequence[str] = ()) -> list[LogLine | LogGap]:
        """Return the new lines of `block`, which ends at a line's end, and a gap where numbers are missing.

        A job has millions of lines, and nearly all of them come in order; this loop handles those directly.

        Args:
            stream: the source of the lines; each stream numbers its lines from 1.
            timestamps: one for each line, or none at all.
        """
        if not block:
            return []
        pieces: list[LogLine | LogGap] = []
        writer, count = _UNKNOWN, None
        for line in parse_lines(block, timestamps):
            number = line.number
            if number is None:
                pieces.append(line)
                continue
            if line.writer is not writer or count is None:
                writer = line.writer
                count = self._counts.get((stream, writer.source))
            if count is not None and number == count.expected:
                count.expected += 1
                count.delivered += 1
                pieces.append(line)
            else:
                pieces += self._account(line, number, stream)
            if writer.node is not None and (totals := _TOTALS.fullmatch(line.text)):
                self.ended_nodes.add(writer.node)
                pieces += self._close(totals[1].decode(), stream)
        return pieces

    def _account(self, line: LogLine, number: int, stream: str) -> Iterator[LogLine | LogGap]:
        count = self._counts.get((stream, line.writer.source))
        if count is None:
            count = self._counts[stream, line.writer.source] = _Count(expected=1 if self._from_start else number)
            if line.writer.rank is not None:
                self._devices[line.writer.source] = line.writer
        expected = count.expected
        if number > expected:
            count.missing.add(expected, number - 1)
            yield LogGap(line.writer.source, expected, number - 1)
        elif number < expected and not count.missing.remove(number):
            return
        count.expected = max(expected, number + 1)
        count.delivered += 1
        yield line

    def _close(self, totals: str, stream: str) -> Iterator[LogGap]:
        """Yield each rank's missing last lines, by the supervisor's count."""
        for rank, _, total in (pair.partition(":") for pair in totals.split()):
            prefix = f"rank {rank} "
            sources = (source for of, source in self._counts if of == stream and source.startswith(prefix))
            yield from self.expect(next(sources, f"rank {rank}"), int(total), stream)

    def expect(self, source: str, last: int, stream: str = "") -> Iterator[LogGap]:
        """Take into account that `source` has written the lines up to `last`; yield a gap if some are missing."""
        # A reader who asked only for a later part may have begun after a rank's last line.
        initial = _Count(expected=1 if self._from_start else last + 1)
        count = self._counts.setdefault((stream, source), initial)
        if count.expected <= last:
            gap = LogGap(source, count.expected, last)
            count.missing.add(gap.first, gap.last)
            count.expected = gap.last + 1
            yield gap

    @property
    def lines(self) -> int:
        """The number of numbered lines that the devices delivered, each counted once."""
        return sum(count.delivered for (_, source), count in self._counts.items() if source in self._devices)

    @property
    def devices(self) -> Sequence[Writer]:
        """The devices that delivered a line, by rank."""
        return sorted(self._devices.values(), key=lambda writer: writer.rank or 0)

    @property
    def missing(self) -> int:
        """The number of lines that never came although a later number did, the supervisors' lines included."""
        return sum(len(count.missing) for count in self._counts.values())

    def gaps(self) -> list[LogGap]:
        """Return what is still missing, in order, as ranges."""
        counts = sorted(self._counts.items(), key=lambda pair: pair[0])
        return [LogGap(source, *bounds) for (_, source), count in counts for bounds in count.missing.ranges]


@dataclass(frozen=True)
class Selection:
    """Which lines the user wants. None selects all."""

    rank: int | None = None
    device: str | None = None
    pattern: re.Pattern[bytes] | None = None

    @property
    def everything(self) -> bool:
        """Whether all lines are selected."""
        return self == Selection()

    @property
    def of_a_device(self) -> bool:
        """Whether the lines of one rank or device are selected."""
        return bool(str(self))

    def __str__(self) -> str:
        """`--rank 9 --device cpu:3`, the options that select a device."""
        options = (("--rank", self.rank), ("--device", self.device))
        return " ".join(f"{name} {value}" for name, value in options if value is not None)

    def selects_any(self, devices: Iterable[Writer]) -> bool:
        """Return whether lines of one of the devices are selected, whatever they say."""
        return any(replace(self, pattern=None).matches(LogLine(b"", b"", writer)) for writer in devices)

    def matches(self, line: LogLine) -> bool:
        """Return whether the line is selected. A device is `cpu:3`, or its number `3`."""
        if self.rank is not None and line.writer.rank != self.rank:
            return False
        device = line.writer.device or ""
        if self.device is not None and self.device not in (device, device.rpartition(":")[2]):
            return False
        return self.pattern is None or self.pattern.search(line.text) is not None


EVERYTHING = Selection()
