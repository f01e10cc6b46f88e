"""Timestamps are read as moments, whatever their time zone, and removed from whole blocks."""

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.podlogs.lines import last_timestamp_ns, timestamp_ns, timestamps, without_timestamps

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def timestamp(ns: int, zone_minutes: int) -> bytes:
    """Return a moment as the kubelet writes it (RFC3339NanoFixed)."""
    zone = timezone(timedelta(minutes=zone_minutes))
    text = (EPOCH + timedelta(seconds=ns // 10**9)).astimezone(zone).isoformat()
    second, offset = text[:19], text[19:]
    return f"{second}.{ns % 10**9:09d}{'Z' if offset == '+00:00' else offset} ".encode()


@given(ns=st.integers(0, 4 * 10**18), zone_minutes=st.integers(-14 * 4, 14 * 4).map(lambda quarters: quarters * 15))
def test_a_timestamp_is_the_same_moment_in_every_zone(ns: int, zone_minutes: int) -> None:
    assert timestamp_ns(timestamp(ns, zone_minutes) + b"text") == ns


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
def test_a_text_that_only_resembles_a_timestamp_is_not_one(line: bytes) -> None:
    assert timestamp_ns(line) is None


LINES = st.lists(
    st.tuples(
        st.booleans(),
        st.binary(max_size=20).map(lambda text: text.replace(b"\n", b"") + b"."),
    ),
    max_size=20,
)


@given(LINES)
def test_a_block_without_its_stamps_is_what_was_timestamp(lines: list[tuple[bool, bytes]]) -> None:
    block = b"".join((timestamp(10**18, 480) if has_timestamp else b"") + text + b"\n" for has_timestamp, text in lines)
    assert without_timestamps(block) == b"".join(text + b"\n" for _, text in lines)
    times = ["2001-09-09T09:46:40.000000000+08:00" if has_timestamp else "" for has_timestamp, _ in lines]
    assert timestamps(block) == times


def test_a_text_that_begins_with_a_timestamp_keeps_it() -> None:
    prefix = timestamp(10**18, 0)
    assert without_timestamps(prefix + prefix + b"text\n") == prefix + b"text\n"


def test_the_last_timestamp_of_a_block_can_be_far_from_its_end() -> None:
    block = timestamp(1, 0) + b"a\n" + timestamp(2, 0) + b"b\n" + b"no timestamp\n" * 3
    assert last_timestamp_ns(block) == 2
    assert last_timestamp_ns(b"no timestamp\n") is None
