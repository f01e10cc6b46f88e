"""Whatever is cut and rotated: no line is repeated, none is lost that was to be had, and every loss is announced."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.podlogs.window import SPAN_NS, Window
from tests.unit.podlogs.test_stamps import written

START_NS = 1_800_000_000 * 10**9
SECOND_NS = 10**9
# How far stamps may be out of order: stdout and stderr have two writers.
DISORDER_NS = 200_000_000


@dataclass(frozen=True)
class Line:
    """One that was printed; `number` is unique and not part of it."""

    number: int
    ns: int
    text: bytes
    zone_minutes: int

    @property
    def raw(self) -> bytes:
        return written(self.ns, self.zone_minutes) + self.text + b"\n"


@dataclass(frozen=True)
class Request:
    """A reader's next request: when it is made, how far it gets.

    Attributes:
        printed: how many more lines have been printed by then.
        rotated: whether the node has put a new file in place just before those.
        bytes_read: after how many bytes the answer is cut; None is never.
        grain: the size of the pieces in which it comes.
    """

    printed: int
    rotated: bool
    bytes_read: int | None
    grain: int


@dataclass
class Node:
    """Prints lines into files, of which it serves the current one."""

    lines: list[Line]
    printed: int = 0
    begin: int = 0

    def answer(self, resume_ns: int | None) -> bytes:
        since_ns = 0 if resume_ns is None else (resume_ns - SPAN_NS) // SECOND_NS * SECOND_NS
        return b"".join(line.raw for line in self.lines[self.begin : self.printed] if line.ns >= since_ns)


@dataclass
class Read:
    """What a reader got."""

    data: bytes = b""
    gaps: list[tuple[int, int]] = field(default_factory=list)


def read(node: Node, requests: list[Request]) -> Read:
    """Read through all requests, and then the rest."""
    window, got = Window(), Read()
    for request in [*requests, Request(len(node.lines), rotated=False, bytes_read=None, grain=10**9)]:
        if request.rotated:
            node.begin = node.printed
        node.printed = min(node.printed + request.printed, len(node.lines))
        window.reopen()
        answer = node.answer(window.resume_ns)[: request.bytes_read]
        for start in range(0, len(answer), request.grain):
            got.data += window.feed(answer[start : start + request.grain])
            if window.gap:
                first, last, lines = window.accept()
                got.gaps.append((first, last))
                got.data += lines
    if not window.joined:
        first, last, lines = window.accept()
        got.gaps.append((first, last if lines else 10**30))
        got.data += lines
    return got


# From everything at once to seconds of silence; few texts, so that many lines are alike.
STEPS = st.sampled_from([0, 1, 1_000_000, 100_000_000, SECOND_NS, 3 * SECOND_NS])
TEXTS = st.sampled_from([b"", b"a", b"step 1", b"x" * 50])
REQUESTS = st.builds(
    Request,
    printed=st.integers(0, 12),
    rotated=st.booleans(),
    bytes_read=st.none() | st.integers(0, 700),
    grain=st.sampled_from([1, 7, 40, 10**6]),
)


@st.composite
def logs(draw: st.DrawFn, *, disorder_ns: int) -> list[Line]:
    lines, ns = [], START_NS
    for number in range(draw(st.integers(0, 60))):
        ns += draw(STEPS)
        moved = draw(st.integers(-disorder_ns, 0)) if disorder_ns else 0
        lines.append(Line(number, ns + moved, draw(TEXTS), draw(st.sampled_from([0, 480, -330]))))
    return lines


@settings(max_examples=200, deadline=None)
@given(lines=logs(disorder_ns=0), requests=st.lists(REQUESTS, max_size=12))
def test_nothing_is_lost_or_repeated_while_the_node_has_it(lines: list[Line], requests: list[Request]) -> None:
    still = [Request(one.printed, rotated=False, bytes_read=one.bytes_read, grain=one.grain) for one in requests]
    got = read(Node(lines), still)
    assert got.data == b"".join(line.raw for line in lines)
    assert not got.gaps


@settings(max_examples=200, deadline=None)
@given(lines=logs(disorder_ns=DISORDER_NS), requests=st.lists(REQUESTS, max_size=12))
def test_stamps_out_of_order_lose_and_repeat_nothing(lines: list[Line], requests: list[Request]) -> None:
    still = [Request(one.printed, rotated=False, bytes_read=one.bytes_read, grain=one.grain) for one in requests]
    got = read(Node(lines), still)
    assert got.data == b"".join(line.raw for line in lines)
    assert not got.gaps


@settings(max_examples=300, deadline=None)
@given(
    lines=logs(disorder_ns=0) | logs(disorder_ns=DISORDER_NS),
    requests=st.lists(REQUESTS, max_size=12),
)
def test_every_line_that_rotation_takes_lies_within_an_announced_gap(
    lines: list[Line], requests: list[Request]
) -> None:
    numbered = [Line(one.number, one.ns, b"%d %s" % (one.number, one.text), one.zone_minutes) for one in lines]
    got = read(Node(numbered), requests)
    delivered = [int(raw.split(b" ")[1]) for raw in got.data.splitlines()]
    assert delivered == sorted(set(delivered)), "in order, none repeated"
    missing = [line for line in numbered if line.number not in set(delivered)]
    begun = min(delivered, default=len(numbered))
    for line in missing:
        # A reader who has seen nothing yet cannot know what a node has thrown away.
        assert line.number < begun or any(
            first - DISORDER_NS <= line.ns <= last + DISORDER_NS for first, last in got.gaps
        ), f"line {line.number} is lost without a word"


def test_a_gap_is_told_with_the_stamps_around_it() -> None:
    lines = [Line(number, START_NS + number * SECOND_NS, b"line", 0) for number in range(10)]
    requests = [
        Request(3, rotated=False, bytes_read=None, grain=10**6),
        Request(0, rotated=True, bytes_read=None, grain=10**6),
        Request(2, rotated=False, bytes_read=0, grain=10**6),
        Request(0, rotated=True, bytes_read=None, grain=10**6),
    ]
    got = read(Node(lines), requests)
    assert got.data == b"".join(line.raw for line in lines if line.number not in (3, 4))
    assert got.gaps == [(lines[2].ns, lines[5].ns)]


def test_a_clock_that_was_set_back_while_connected_loses_nothing() -> None:
    moments = [100, 101, 90, 91, 92, 93, 94, 95]
    lines = [Line(number, START_NS + at * SECOND_NS, b"line", 0) for number, at in enumerate(moments)]
    requests = [Request(printed, rotated=False, bytes_read=None, grain=1) for printed in (3, 2, 1, 1)]
    got = read(Node(lines), requests)
    assert got.data == b"".join(line.raw for line in lines)
    assert not got.gaps


def test_the_rest_of_a_long_line_is_not_taken_for_a_new_one() -> None:
    window = Window()
    text = b"".join(b"%d " % number for number in range(5000))
    first, long = written(START_NS, 0) + b"first\n", written(START_NS + 1, 0) + text + b"\n"
    after = written(START_NS + 3, 0) + b"after\n"
    assert window.feed(first + long) == first + long
    window.reopen()
    # The node's current file begins in the middle of it.
    part = written(START_NS + 2, 0) + text[16384:] + b"\n"
    assert window.feed(part + after) == after
    assert window.joined


@pytest.mark.parametrize("words", [b"unable to retrieve container logs for containerd://01\n", b"a\nb\n"])
def test_what_the_server_says_in_place_of_a_log_is_no_line(words: bytes) -> None:
    window = Window()
    line = written(START_NS, 0) + b"text\n"
    assert window.feed(words + line) == line
    assert window.words == words


def test_an_unfinished_last_line_comes_at_the_end_and_only_then() -> None:
    window = Window()
    line = written(START_NS, 0) + b"half"
    assert window.feed(line) == b""
    window.reopen()
    assert window.feed(line) == b""
    assert window.finish() == line + b"\n"
    assert window.finish() == b""


def test_a_line_of_many_pieces_is_put_together() -> None:
    window = Window()
    line = written(START_NS, 0) + b"x" * 100_000 + b"\n"
    assert b"".join(window.feed(line[start : start + 1000]) for start in range(0, len(line), 1000)) == line


def test_a_container_that_prints_more_than_is_kept_is_not_said_to_have_lost_lines() -> None:
    window = Window()
    lines = [written(START_NS + number * 10_000, 0) + b"%d " % number + b"x" * 1000 + b"\n" for number in range(20_000)]
    for start in range(0, 15_000, 100):
        block = b"".join(lines[start : start + 100])
        assert window.feed(block) == block
    assert window.remembered_bytes < 5 << 20
    window.reopen()
    new = b""
    for line in lines:
        new += window.feed(line)
        assert not window.gap
    assert new == b"".join(lines[15_000:])


@pytest.mark.parametrize("young", [1, 2 << 20])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_forgotten_line_whose_stamp_is_too_young_is_not_new(young: int, *, at_once: bool) -> None:
    """Unless there is so much of it that it cannot be kept until that is known."""
    window = Window()
    early, late = START_NS, START_NS + DISORDER_NS
    lines = [b"%s%s\n" % (written(ns, 0), b"x" * size) for ns, size in ((early, 1), (late, young), (early, 1 << 20))]
    window.feed(b"".join(lines))
    for number in range(4):
        lines.append(b"%s%s\n" % (written(late + number, 0), b"x" * 900_000))
        window.feed(lines[-1])
    window.reopen()
    lines.pop()
    gaps = []
    for part in [b"".join(lines)] if at_once else lines:
        assert window.feed(part) == b""
        gaps.append(window.gap)
    assert any(gaps) is (young > 1 << 20 and not at_once)
    assert window.joined


def test_only_the_last_seconds_are_kept() -> None:
    window = Window()
    for number in range(2000):
        window.feed(written(START_NS + number * SECOND_NS // 10, 0) + b"x" * 1000 + b"\n")
    window.reopen()
    kept = b"".join(written(START_NS + number * SECOND_NS // 10, 0) + b"x" * 1000 + b"\n" for number in (1500, 1999))
    assert window.feed(kept) == b"", "an older line is known by its stamp, a younger one by itself"
    assert window.joined
    assert window.remembered_bytes < 40_000
