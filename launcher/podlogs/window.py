r"""Which lines of a log that was opened again are new, and whether lines between the two answers are missing.

A server is asked for the lines since a moment, and answers with up to a few seconds more. Timestamps are not enough to
say which of these lines are known: stdout and stderr have two writers, so timestamps are sometimes out of order, and
two lines can have the same timestamp. The window therefore keeps the last two seconds as they came. Each line that
comes again is taken out of the multiset of these lines. If no known line comes again, the server no longer has the
lines that follow them: a gap.

Pure: bytes go in, bytes come out. Whole blocks pass untouched; single lines are looked at only after a cut.
"""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from launcher.podlogs.lines import last_timestamp_ns, timestamp_ns

SPAN_NS = 2_000_000_000
# A block is forgotten by the timestamp of its last line; the lines before that can be a little younger.
_SLACK_NS = 1_000_000_000
# Of a container that prints more than this in two seconds, the window keeps less than two seconds.
_LIMIT = 4 << 20
_HELD_LIMIT = 1 << 20
# A runtime splits longer lines, and a kubelet that is asked for a later part begins with the rest of a line.
_SPLIT_LENGTH = 16 << 10


@dataclass(frozen=True, slots=True)
class _Block:
    lines: bytes
    last_ns: int


@dataclass(slots=True)
class _Search:
    """The comparison of an answer with the known lines.

    Attributes:
        unmatched: how often each known line has not come again yet, by its hash.
        last: the hash of the newest known line. Files keep their order, so the lines after it are new.
        older_ns: an unmatched line with a timestamp up to this one is older than the window.
        long_lines: known long lines: an answer can begin inside one, because runtimes split them.
        joined: a known line has come again.
        at_start: no line of the answer has been compared yet.
        held: unknown lines that came before any known line.
        gap: it is certain that no known line comes again.
    """

    unmatched: Counter[int]
    last: int
    older_ns: int
    newest_ns: int
    long_lines: Sequence[bytes]
    joined: bool = False
    at_start: bool = True
    held: bytearray = field(default_factory=bytearray)
    gap: bool = False

    def hold(self, line: bytes) -> None:
        """Keep an unknown line. If it is younger than all known lines, none of these comes after it: a gap."""
        self.held += line + b"\n"
        self.gap = self.gap or (timestamp_ns(line) or 0) > self.newest_ns or len(self.held) > _HELD_LIMIT


class LogWindow:
    """The end of the part of one container's log that was delivered."""

    def __init__(self) -> None:
        self.newest_ns: int | None = None
        """The youngest timestamp of the delivered lines, roughly."""
        self.last_line = b""
        """The line delivered last, with its timestamp and line end."""
        self.server_message = b""
        """The kubelet's own words in place of a log: lines without a timestamp at the beginning of an answer."""
        self._blocks: deque[_Block] = deque()
        self.remembered_bytes = 0
        """The size of the lines that are kept for comparison."""
        self._forgotten_ns = 0
        self._rest: list[bytes] = []
        self._has_begun = False
        self._search: _Search | None = None

    def reopen(self) -> None:
        """Expect a new answer, which may repeat known lines. Half a line of the last answer is dropped."""
        self._rest.clear()
        self._has_begun = False
        self.server_message = b""
        self._search = None if self.newest_ns is None else self._new_search(self.newest_ns)

    def _new_search(self, newest_ns: int) -> _Search:
        unmatched: Counter[int] = Counter()
        long_lines: list[bytes] = []
        for block in self._blocks:
            lines = block.lines.split(b"\n")
            lines.pop()
            unmatched.update(map(hash, lines))
            if len(block.lines) >= _SPLIT_LENGTH:
                long_lines += [line for line in lines if len(line) >= _SPLIT_LENGTH]
        older_ns = max(newest_ns - SPAN_NS, self._forgotten_ns)
        return _Search(unmatched, hash(self.last_line[:-1]), older_ns, newest_ns, long_lines)

    def feed(self, data: bytes) -> bytes:
        """Return the whole lines that are new. After `has_gap` becomes true, return none until `accept_gap`."""
        lines = self._whole_lines(data)
        if lines and not self._has_begun:
            lines = self._without_server_message(lines)
        if lines and self._search is not None:
            lines = self._new_lines(self._search, lines)
        self._remember(lines)
        return lines

    def finish(self) -> bytes:
        """Return the last line if the container ended in the middle of it; a line end is added, as `feed` has one."""
        rest = b"".join(self._rest)
        self._rest.clear()
        return self.feed(rest + b"\n") if rest else b""

    @property
    def resume_ns(self) -> int | None:
        """Ask for the lines from a little before this timestamp.

        It is not the youngest one if the node's clock was set back. If that happens while the connection is cut, the
        reader cannot know it, and misses the lines until the clock has caught up.
        """
        return None if self.newest_ns is None else min(self.newest_ns, timestamp_ns(self.last_line) or self.newest_ns)

    @property
    def joined(self) -> bool:
        """Whether the answer continues where the last one was cut, or no line was delivered before it."""
        return self._search is None or self._search.joined

    @property
    def has_gap(self) -> bool:
        """Whether the answer begins later than the lines that follow the last delivered one."""
        return self._search is not None and self._search.gap

    def accept_gap(self) -> tuple[int, int, bytes]:
        """Accept that lines are lost; return the timestamps around them and the lines that came after them."""
        search, self._search = self._search, None
        assert search is not None
        assert self.newest_ns is not None
        lines = bytes(search.held)
        first = self.resume_ns or search.newest_ns
        last = max(timestamp_ns(lines) or search.newest_ns, search.newest_ns)
        self._blocks.clear()
        self.remembered_bytes = 0
        self._remember(lines)
        return first, last, lines

    def _whole_lines(self, data: bytes) -> bytes:
        end = data.rfind(b"\n") + 1
        if not end:
            if data:
                self._rest.append(data)
            return b""
        lines = b"".join((*self._rest, data[:end])) if self._rest or end < len(data) else data
        self._rest = [data[end:]] if end < len(data) else []
        return lines

    def _without_server_message(self, lines: bytes) -> bytes:
        """Drop lines until one has a timestamp: each log line has one, the kubelet's `unable to retrieve …` has not."""
        while lines and timestamp_ns(lines) is None:
            line, _, lines = lines.partition(b"\n")
            self.server_message += line + b"\n"
        self._has_begun = bool(lines)
        return lines

    def _new_lines(self, search: _Search, block: bytes) -> bytes:
        new: list[bytes] = []
        lines = block.split(b"\n")
        lines.pop()
        for index, line in enumerate(lines):
            key = hash(line)
            if search.unmatched[key] > 0:
                search.unmatched[key] -= 1
                search.joined, search.gap = True, False
                if key == search.last and not search.unmatched[key]:
                    new += lines[index + 1 :]
                    self._search = None
                    break
            elif search.joined:
                new.append(line)
            elif search.gap or not _is_known(search, line):
                search.hold(line)
            search.at_start = False
        if search.joined and (last_timestamp_ns(block) or 0) > search.newest_ns + SPAN_NS:
            self._search = None
        return b"\n".join(new) + b"\n" if new else b""

    def _remember(self, lines: bytes) -> None:
        if not lines:
            return
        self.last_line = lines[lines.rfind(b"\n", 0, -1) + 1 :]
        last_ns = last_timestamp_ns(lines) or self.newest_ns or 0
        self.newest_ns = max(last_ns, self.newest_ns or 0)
        self._blocks.append(_Block(lines, last_ns))
        self.remembered_bytes += len(lines)
        oldest = last_ns - SPAN_NS - _SLACK_NS
        while len(self._blocks) > 1 and (self._blocks[0].last_ns < oldest or self.remembered_bytes > _LIMIT):
            block = self._blocks.popleft()
            self.remembered_bytes -= len(block.lines)
            self._forgotten_ns = max(self._forgotten_ns, block.last_ns)


def _is_known(search: _Search, line: bytes) -> bool:
    """Return whether an unmatched line is older than the window, or is the rest of a line in it."""
    timestamp = timestamp_ns(line)
    if timestamp is None:
        return not search.held
    if timestamp > search.older_ns and search.at_start and search.long_lines:
        text = line.partition(b" ")[2]
        search.joined = bool(text) and any(known.endswith(text) for known in search.long_lines)
    return search.joined or timestamp <= search.older_ns
