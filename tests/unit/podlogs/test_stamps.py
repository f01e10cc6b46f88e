"""Stamps are read as moments, whatever zone they are written in, and taken off whole blocks."""

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.podlogs.batch import batch_of
from launcher.podlogs.stamps import last_stamp_ns, stamp_ns, without_stamps

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def written(ns: int, zone_minutes: int) -> bytes:
    """As the kubelet writes a moment, RFC3339NanoFixed."""
    zone = timezone(timedelta(minutes=zone_minutes))
    text = (EPOCH + timedelta(seconds=ns // 10**9)).astimezone(zone).isoformat()
    second, offset = text[:19], text[19:]
    return f"{second}.{ns % 10**9:09d}{'Z' if offset == '+00:00' else offset} ".encode()


@given(ns=st.integers(0, 4 * 10**18), zone_minutes=st.integers(-14 * 4, 14 * 4).map(lambda quarters: quarters * 15))
def test_a_stamp_is_the_same_moment_in_every_zone(ns: int, zone_minutes: int) -> None:
    assert stamp_ns(written(ns, zone_minutes) + b"text") == ns


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"text",
        b"2026-11-24T16:50:47Z text",
        b"2026-11-24T16:50:47.123Z text",
        b"2026-11-24T16:50:47.123456789 text",
        b"unable to retrieve container logs for containerd://0123",
    ],
)
def test_what_only_looks_like_a_stamp_is_none(line: bytes) -> None:
    assert stamp_ns(line) is None


LINES = st.lists(
    st.tuples(
        st.booleans(),
        st.binary(max_size=20).map(lambda text: text.replace(b"\n", b"") + b"."),
    ),
    max_size=20,
)


@given(LINES)
def test_a_block_without_its_stamps_is_what_was_written(lines: list[tuple[bool, bytes]]) -> None:
    block = b"".join((written(10**18, 480) if stamped else b"") + text + b"\n" for stamped, text in lines)
    batch = batch_of(block)
    assert batch.data == b"".join(text + b"\n" for _, text in lines)
    assert batch.times() == ["2001-09-09T09:46:40.000000000+08:00" if stamped else "" for stamped, _ in lines]


def test_a_text_that_begins_like_a_stamp_keeps_it() -> None:
    stamp = written(10**18, 0)
    assert without_stamps(stamp + stamp + b"text\n") == stamp + b"text\n"


def test_the_last_stamp_of_a_block_may_be_far_from_its_end() -> None:
    block = written(1, 0) + b"a\n" + written(2, 0) + b"b\n" + b"no stamp\n" * 3
    assert last_stamp_ns(block) == 2
    assert last_stamp_ns(b"no stamp\n") is None
