"""Through cuts and rotations no line is repeated, no line that the node has is lost, and every loss is announced."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.podlogs.window import SPAN_NS, LogWindow
from tests.unit.podlogs.test_lines import timestamp

START_NS = 1_800_000_000 * 10**9
SECOND_NS = 10**9
# How far timestamps can be out of order: stdout and stderr have two writers.
DISORDER_NS = 200_000_000


@dataclass(frozen=True)
class Line:
    """A printed line; `number` is unique and not part of it."""

    number: int
    ns: int
    text: bytes
    zone_minutes: int

    @property
    def raw(self) -> bytes:
        return timestamp(self.ns, self.zone_minutes) + self.text + b"\n"


@dataclass(frozen=True)
class Request:
    """A reader's next request: when it is sent, and how much of its answer arrives.

    Attributes:
        printed: how many more lines have been printed by then.
        rotated: whether the node started a new file just before these lines.
        bytes_read: after how many bytes the answer is cut; None is never.
        grain: the size of the parts in which the answer comes.
    """

    printed: int
    rotated: bool
    bytes_read: int | None
    grain: int


@dataclass
class Node:
    """Prints lines into files, and serves the current file."""

    lines: list[Line]
    printed: int = 0
    begin: int = 0

    def answer(self, resume_ns: int | None) -> bytes:
        since_ns = 0 if resume_ns is None else (resume_ns - SPAN_NS) // SECOND_NS * SECOND_NS
        return b"".join(line.raw for line in self.lines[self.begin : self.printed] if line.ns >= since_ns)


@dataclass
class Read:
    """The lines and gaps that a reader received."""

    data: bytes = b""
    gaps: list[tuple[int, int]] = field(default_factory=list)


def read(node: Node, requests: list[Request]) -> Read:
    """Read with all requests, and then the rest."""
    window, result = LogWindow(), Read()
    for request in [*requests, Request(len(node.lines), rotated=False, bytes_read=None, grain=10**9)]:
        if request.rotated:
            node.begin = node.printed
        node.printed = min(node.printed + request.printed, len(node.lines))
        window.reopen()
        answer = node.answer(window.resume_ns)[: request.bytes_read]
        for start in range(0, len(answer), request.grain):
            result.data += window.feed(answer[start : start + request.grain])
            if window.has_gap:
                first, last, lines = window.accept_gap()
                result.gaps.append((first, last))
                result.data += lines
    if not window.joined:
        first, last, lines = window.accept_gap()
        result.gaps.append((first, last if lines else 10**30))
        result.data += lines
    return result


# From all lines at once to seconds of silence; few texts, so that many lines are equal.
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


def check_every_line_once(lines: list[Line], requests: list[Request]) -> None:
    """Read a log that is not rotated, and compare the result with all of its lines."""
    unrotated = [replace(request, rotated=False) for request in requests]
    result = read(Node(lines), unrotated)
    assert result.data == b"".join(line.raw for line in lines)
    assert not result.gaps


@settings(max_examples=200, deadline=None)
@given(lines=logs(disorder_ns=0), requests=st.lists(REQUESTS, max_size=12))
def test_no_line_is_lost_or_repeated_while_the_node_has_it(lines: list[Line], requests: list[Request]) -> None:
    check_every_line_once(lines, requests)


@settings(max_examples=200, deadline=None)
@given(lines=logs(disorder_ns=DISORDER_NS), requests=st.lists(REQUESTS, max_size=12))
def test_timestamps_out_of_order_lose_and_repeat_no_line(lines: list[Line], requests: list[Request]) -> None:
    check_every_line_once(lines, requests)


@settings(max_examples=300, deadline=None)
@given(
    lines=logs(disorder_ns=0) | logs(disorder_ns=DISORDER_NS),
    requests=st.lists(REQUESTS, max_size=12),
)
def test_every_line_that_rotation_takes_lies_within_an_announced_gap(
    lines: list[Line], requests: list[Request]
) -> None:
    numbered = [replace(line, text=b"%d %s" % (line.number, line.text)) for line in lines]
    result = read(Node(numbered), requests)
    delivered = [int(raw.split(b" ")[1]) for raw in result.data.splitlines()]
    assert delivered == sorted(set(delivered)), "in order, each once"
    missing = [line for line in numbered if line.number not in set(delivered)]
    first_delivered = min(delivered, default=len(numbered))
    for line in missing:
        # A reader that has received no line cannot know what the node has deleted.
        assert line.number < first_delivered or any(
            first - DISORDER_NS <= line.ns <= last + DISORDER_NS for first, last in result.gaps
        ), f"line {line.number} is lost without an announcement"


def test_a_gap_has_the_timestamps_around_it() -> None:
    lines = [Line(number, START_NS + number * SECOND_NS, b"line", 0) for number in range(10)]
    requests = [
        Request(3, rotated=False, bytes_read=None, grain=10**6),
        Request(0, rotated=True, bytes_read=None, grain=10**6),
        Request(2, rotated=False, bytes_read=0, grain=10**6),
        Request(0, rotated=True, bytes_read=None, grain=10**6),
    ]
    result = read(Node(lines), requests)
    assert result.data == b"".join(line.raw for line in lines if line.number not in (3, 4))
    assert result.gaps == [(lines[2].ns, lines[5].ns)]


def test_a_clock_that_is_set_back_during_a_connection_loses_no_line() -> None:
    moments = [100, 101, 90, 91, 92, 93, 94, 95]
    lines = [Line(number, START_NS + at * SECOND_NS, b"line", 0) for number, at in enumerate(moments)]
    requests = [Request(printed, rotated=False, bytes_read=None, grain=1) for printed in (3, 2, 1, 1)]
    result = read(Node(lines), requests)
    assert result.data == b"".join(line.raw for line in lines)
    assert not result.gaps


def test_the_rest_of_a_long_line_is_not_a_new_line() -> None:
    window = LogWindow()
    text = b"".join(b"%d " % number for number in range(5000))
    first, long = timestamp(START_NS, 0) + b"first\n", timestamp(START_NS + 1, 0) + text + b"\n"
    after = timestamp(START_NS + 3, 0) + b"after\n"
    assert window.feed(first + long) == first + long
    window.reopen()
    # The node's current file begins in the middle of the long line.
    part = timestamp(START_NS + 2, 0) + text[16384:] + b"\n"
    assert window.feed(part + after) == after
    assert window.joined


@pytest.mark.parametrize("message", [b"unable to retrieve container logs for containerd://01\n", b"a\nb\n"])
def test_the_servers_message_in_place_of_a_log_is_not_a_line(message: bytes) -> None:
    window = LogWindow()
    line = timestamp(START_NS, 0) + b"text\n"
    assert window.feed(message + line) == line
    assert window.server_message == message


def test_an_unfinished_last_line_comes_only_at_the_end() -> None:
    window = LogWindow()
    line = timestamp(START_NS, 0) + b"half"
    assert window.feed(line) == b""
    window.reopen()
    assert window.feed(line) == b""
    assert window.finish() == line + b"\n"
    assert window.finish() == b""


def test_a_line_that_comes_in_many_parts_is_joined() -> None:
    window = LogWindow()
    line = timestamp(START_NS, 0) + b"x" * 100_000 + b"\n"
    assert b"".join(window.feed(line[start : start + 1000]) for start in range(0, len(line), 1000)) == line


def test_a_container_that_prints_more_than_the_window_keeps_loses_no_line() -> None:
    window = LogWindow()
    lines = [
        timestamp(START_NS + number * 10_000, 0) + b"%d " % number + b"x" * 1000 + b"\n" for number in range(20_000)
    ]
    for start in range(0, 15_000, 100):
        block = b"".join(lines[start : start + 100])
        assert window.feed(block) == block
    assert window.remembered_bytes < 5 << 20
    window.reopen()
    new = b""
    for line in lines:
        new += window.feed(line)
        assert not window.has_gap
    assert new == b"".join(lines[15_000:])


@pytest.mark.parametrize("young", [1, 2 << 20])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_forgotten_line_whose_timestamp_is_too_young_is_not_new(young: int, *, at_once: bool) -> None:
    """Unless it is too long to be held until a known line comes."""
    window = LogWindow()
    early, late = START_NS, START_NS + DISORDER_NS
    lines = [b"%s%s\n" % (timestamp(ns, 0), b"x" * size) for ns, size in ((early, 1), (late, young), (early, 1 << 20))]
    window.feed(b"".join(lines))
    for number in range(4):
        lines.append(b"%s%s\n" % (timestamp(late + number, 0), b"x" * 900_000))
        window.feed(lines[-1])
    window.reopen()
    lines.pop()
    gaps = []
    for part in [b"".join(lines)] if at_once else lines:
        assert window.feed(part) == b""
        gaps.append(window.has_gap)
    assert any(gaps) is (young > 1 << 20 and not at_once)
    assert window.joined


def test_the_window_keeps_only_the_last_seconds() -> None:
    window = LogWindow()
    for number in range(2000):
        window.feed(timestamp(START_NS + number * SECOND_NS // 10, 0) + b"x" * 1000 + b"\n")
    window.reopen()
    known = b"".join(timestamp(START_NS + number * SECOND_NS // 10, 0) + b"x" * 1000 + b"\n" for number in (1500, 1999))
    assert window.feed(known) == b"", "an older line is known by its timestamp, a younger line by its text"
    assert window.joined
    assert window.remembered_bytes < 40_000
