"""Lines are split by device, and their numbers prove which lines are missing or repeated."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.output.lines import Demultiplexer, LogGap, LogLine, Selection, parse_lines

WORKER = b"[rank 3 cpu:3 #1042] step epoch=0 step=120"
SUPERVISOR = b"[node 0 #5] started 2 workers"


def _line(raw: bytes) -> LogLine:
    [line] = parse_lines(raw)
    return line


def tagged(rank: int, number: int, text: str = "text") -> bytes:
    return f"[rank {rank} npu:{rank} #{number}] {text}\n".encode()


def test_a_tag_gives_the_writer_its_device_and_the_number() -> None:
    worker, supervisor = parse_lines(WORKER + b"\n" + SUPERVISOR)
    assert (worker.number, worker.text, supervisor.number) == (1042, b"step epoch=0 step=120", 5)
    assert (worker.writer.source, worker.writer.rank, worker.writer.device) == ("rank 3 cpu:3", 3, "cpu:3")
    assert (supervisor.writer.source, supervisor.writer.node, supervisor.writer.rank) == ("node 0", 0, None)


def test_the_user_sees_the_tag_without_the_number() -> None:
    assert _line(WORKER).shown == b"[rank 3 cpu:3] step epoch=0 step=120"
    assert _line(SUPERVISOR).shown == b"[node 0] started 2 workers"


@pytest.mark.parametrize(
    "raw", [b"", b"Traceback (most recent call last):", b"[rank x] no", b"[rank 1 cpu:1] old", b"\xff\xfe [rank 1"]
)
def test_a_line_without_a_tag_stays_whole(raw: bytes) -> None:
    assert _line(raw) == LogLine(raw, raw)
    assert _line(raw).shown == raw


def test_bytes_that_are_not_text_pass_unchanged() -> None:
    assert _line(b"[rank 0 cpu:0 #1] \xff\x00 x").shown == b"[rank 0 cpu:0] \xff\x00 x"


def test_a_gap_comes_at_its_place_with_its_bounds() -> None:
    counts = Demultiplexer()
    items = list(counts.feed(tagged(0, 1) + tagged(0, 2) + tagged(0, 6)))
    assert [type(item) for item in items] == [LogLine, LogLine, LogGap, LogLine]
    assert str(items[2]) == "lines 3-5 of rank 0 npu:0 are missing"
    assert (counts.lines, len(counts.devices), counts.missing) == (3, 1, 3)


def test_a_missing_first_line_is_noticed() -> None:
    counts = Demultiplexer()
    assert LogGap("rank 1 npu:1", 1, 1) in list(counts.feed(tagged(1, 2)))
    assert list(Demultiplexer(from_start=False).feed(tagged(1, 2))) == [_line(tagged(1, 2)[:-1])]


def test_a_missing_end_is_noticed_by_the_supervisors_count() -> None:
    end = b'[node 0 #1] ended lines="0:2 1:4 2:3" outcome=succeeded\n'
    counts = Demultiplexer()
    items = list(counts.feed(tagged(0, 1) + tagged(0, 2) + tagged(1, 1) + end))
    assert items[-2:] == [LogGap("rank 1 npu:1", 2, 4), LogGap("rank 2", 1, 3)]
    assert (counts.missing, counts.lines, len(counts.devices)) == (6, 3, 2)
    assert list(counts.feed(tagged(1, 3))) == [_line(tagged(1, 3)[:-1])], "a late line is shown"
    assert counts.missing == 5
    later = Demultiplexer(from_start=False)
    assert [item for item in later.feed(tagged(0, 2) + end) if isinstance(item, LogGap)] == [], (
        "only the end was asked for"
    )


@pytest.mark.parametrize(
    "totals", ["0:" + "9" * 5000, "9" * 5000 + ":1", "0:1:2", "0:1 :", "0:1 ", "0", ":", " ", "1 2"]
)
def test_damaged_counts_are_an_ordinary_line(totals: str) -> None:
    counts = Demultiplexer()
    [line] = counts.feed(f'[node 0 #1] ended lines="{totals}" outcome=succeeded\n'.encode())
    assert isinstance(line, LogLine)
    assert (counts.missing, counts.ended_nodes) == (0, set())


def test_each_device_and_each_supervisor_is_counted_separately() -> None:
    counts = Demultiplexer()
    block = b"".join(tagged(rank, number) for number in (1, 2) for rank in range(8)) + b"[node 0 #2] x\n"
    list(counts.feed(block))
    assert (counts.lines, len(counts.devices)) == (16, 8), "a supervisor is not a device, and its lines are not counted"
    assert counts.gaps() == [LogGap("node 0", 1, 1)], "a supervisor's lines are checked too"


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 40)), max_size=120))
def test_the_counts_are_exact_for_lost_repeated_and_late_lines(delivered: list[tuple[int, int]]) -> None:
    counts = Demultiplexer()
    block = b"".join(tagged(rank, number) for rank, number in delivered)
    shown = [(item.writer.rank, item.number) for item in counts.feed(block) if isinstance(item, LogLine)]
    assert sorted(shown) == sorted(set(delivered)), "each line is shown once"
    assert counts.lines == len(set(delivered)), "each line is counted once"
    missing = {
        (rank, number)
        for rank in {rank for rank, _ in delivered}
        for number in range(1, max(n for r, n in delivered if r == rank))
        if (rank, number) not in delivered
    }
    named = {(int(gap.source.split()[1]), number) for gap in counts.gaps() for number in range(gap.first, gap.last + 1)}
    assert named == missing
    assert counts.missing == len(missing)


def test_a_selection_takes_a_device_by_its_name_or_its_number() -> None:
    line = _line(WORKER)
    assert Selection(device="3").matches(line)
    assert Selection(device="cpu:3").matches(line)
    assert not Selection(device="npu:3").matches(line)
    assert not Selection(device="3").matches(_line(SUPERVISOR))
    assert Selection(rank=3, pattern=re.compile(rb"step=1\d+")).matches(line)
    assert not Selection(rank=2).matches(line)
    assert not Selection(pattern=re.compile(rb"eval")).matches(line)
    assert Selection(rank=3).selects_any([line.writer])
    assert not Selection(rank=3, device="4").selects_any([line.writer])
    assert str(Selection(rank=3, device="cpu:4")) == "--rank 3 --device cpu:4"
    assert Selection().everything
    assert not Selection(rank=0).everything
