r"""What of a log that was opened anew has not been delivered yet, and whether something is missing in between.

A server is asked for the lines since a moment, and answers with whole seconds more than that. Stamps alone cannot say
which of those lines are known: stdout and stderr have two writers, so stamps are now and then out of order, and two
lines may have the same. So the window keeps the last two seconds as they came, and takes each line that comes again
out of the multiset of them. Where nothing that is known comes again, the server no longer has what came before: a gap.

Pure: bytes go in, bytes come out. Live, whole blocks pass untouched; lines are looked at one by one only after a cut.
"""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from launcher.podlogs.stamps import last_stamp_ns, stamp_ns

SPAN_NS = 2_000_000_000
# Evicted by the stamp of a block's last line; the lines before it may be a little younger.
_SLACK_NS = 1_000_000_000
# A container that prints faster than this in two seconds is remembered for less.
_LIMIT = 4 << 20
_HELD_LIMIT = 1 << 20
# A runtime splits a longer line, and a kubelet that is asked for a later part begins with the rest of it.
_SPLIT_LENGTH = 16 << 10


@dataclass(frozen=True, slots=True)
class _Block:
    lines: bytes
    last_ns: int


@dataclass(slots=True)
class _Search:
    """The comparison of an answer with what is known.

    Attributes:
        unmatched: how often each known line is still to come again, by its hash.
        last: the hash of the newest of them. Files keep their order: what follows it is new.
        older_ns: an unmatched line up to this moment comes from before the known ones.
        long_lines: those of which an answer may begin with a part.
        joined: a known line has come again.
        held: unknown lines that came before any known one.
        gap: it is decided that no known line comes again.
    """

    unmatched: Counter[int]
    last: int
    older_ns: int
    newest_ns: int
    long_lines: Sequence[bytes]
    joined: bool = False
    first: bool = True
    held: bytearray = field(default_factory=bytearray)
    gap: bool = False

    def hold(self, line: bytes) -> None:
        """Keep an unknown line until it is decided: stamps out of order may be known ones, younger ones are not."""
        self.held += line + b"\n"
        self.gap = self.gap or (stamp_ns(line) or 0) > self.newest_ns or len(self.held) > _HELD_LIMIT


class Window:
    """The end of one container's log as it was delivered."""

    def __init__(self) -> None:
        self.newest_ns: int | None = None
        """The youngest stamp among the delivered lines, about."""
        self.last_line = b""
        """The line delivered last, with its stamp and line end."""
        self.words = b""
        """What the server said in place of a log: lines without a stamp at the beginning of an answer."""
        self._blocks: deque[_Block] = deque()
        self.remembered_bytes = 0
        """How much of the log is kept for comparison."""
        self._forgotten_ns = 0
        self._rest: list[bytes] = []
        self._begun = False
        self._search: _Search | None = None

    def reopen(self) -> None:
        """What is fed from now on comes from a new answer, which may repeat what is known. Half a line is dropped."""
        self._rest.clear()
        self._begun = False
        self.words = b""
        self._search = None if self.newest_ns is None else self._searched(self.newest_ns)

    def _searched(self, newest_ns: int) -> _Search:
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
        """The whole lines that are new. Where `gap` turns true, none are delivered until `accept`."""
        whole = self._whole_lines(data)
        if whole and not self._begun:
            whole = self._without_words(whole)
        if whole and self._search is not None:
            whole = self._unknown(self._search, whole)
        self._remember(whole)
        return whole

    def finish(self) -> bytes:
        """The last line, if the container ended in the middle of it: with a line end, as new lines come with one."""
        rest = b"".join(self._rest)
        self._rest.clear()
        return self.feed(rest + b"\n") if rest else b""

    @property
    def resume_ns(self) -> int | None:
        """The stamp from a little before which on to ask for more.

        Not the youngest where the node's clock was set back. If that happens while the connection is cut, nobody can
        know, and what is written until the clock has caught up is not asked for.
        """
        return None if self.newest_ns is None else min(self.newest_ns, stamp_ns(self.last_line) or self.newest_ns)

    @property
    def joined(self) -> bool:
        """The answer goes on where the last one was cut, or nothing had been delivered before it."""
        return self._search is None or self._search.joined

    @property
    def gap(self) -> bool:
        """The answer begins after what was delivered last: what lies between is missing."""
        return self._search is not None and self._search.gap

    def accept(self) -> tuple[int, int, bytes]:
        """Give up what is missing: between which stamps it was, and the lines after it (none, if none came yet)."""
        search, self._search = self._search, None
        assert search is not None
        assert self.newest_ns is not None
        lines = bytes(search.held)
        first = self.resume_ns or search.newest_ns
        last = max(stamp_ns(lines) or search.newest_ns, search.newest_ns)
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
        whole = b"".join((*self._rest, data[:end])) if self._rest or end < len(data) else data
        self._rest = [data[end:]] if end < len(data) else []
        return whole

    def _without_words(self, lines: bytes) -> bytes:
        """Every answer begins with a stamp, unless the kubelet speaks itself, as in `unable to retrieve …`."""
        while lines and stamp_ns(lines) is None:
            line, _, lines = lines.partition(b"\n")
            self.words += line + b"\n"
        self._begun = bool(lines)
        return lines

    def _unknown(self, search: _Search, block: bytes) -> bytes:
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
            search.first = False
        if search.joined and (last_stamp_ns(block) or 0) > search.newest_ns + SPAN_NS:
            self._search = None
        return b"\n".join(new) + b"\n" if new else b""

    def _remember(self, lines: bytes) -> None:
        if not lines:
            return
        self.last_line = lines[lines.rfind(b"\n", 0, -1) + 1 :]
        last_ns = last_stamp_ns(lines) or self.newest_ns or 0
        self.newest_ns = max(last_ns, self.newest_ns or 0)
        self._blocks.append(_Block(lines, last_ns))
        self.remembered_bytes += len(lines)
        oldest = last_ns - SPAN_NS - _SLACK_NS
        while len(self._blocks) > 1 and (self._blocks[0].last_ns < oldest or self.remembered_bytes > _LIMIT):
            forgotten = self._blocks.popleft()
            self.remembered_bytes -= len(forgotten.lines)
            self._forgotten_ns = max(self._forgotten_ns, forgotten.last_ns)


def _is_known(search: _Search, line: bytes) -> bool:
    """Whether an unmatched line comes from before the window, or is the rest of a line in it."""
    stamp = stamp_ns(line)
    if stamp is None:
        return not search.held
    if stamp > search.older_ns and search.first and search.long_lines:
        text = line.partition(b" ")[2]
        search.joined = bool(text) and any(known.endswith(text) for known in search.long_lines)
    return search.joined or stamp <= search.older_ns
