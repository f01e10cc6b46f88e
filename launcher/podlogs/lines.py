"""The pieces of a container's log, and the timestamp in front of each line as the kubelet writes it.

`2026-11-24T16:50:47.123456789+08:00 text`: the timestamp has nine digits and the offset of the node's time zone
(`timeFormatOut` in cri-client's pkg/logs), so timestamps are compared as numbers and never as text. Whole blocks are
handled at once, because a log has millions of lines.
"""

import re
from datetime import datetime
from functools import lru_cache

from launcher.jobs import LogLoss

LogPiece = bytes | LogLoss
"""Whole lines with their timestamps, or lost lines at their place. Empty bytes, once: all lines of now have come."""

_TIMESTAMP = rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.(\d{9})(Z|[+-]\d\d:\d\d) "
_AT_START = re.compile(_TIMESTAMP)
# The line end comes first, because a search for one byte is by far the fastest.
_AFTER_LINE_END = re.compile(rb"\n" + _TIMESTAMP.replace(rb"(", rb"(?:"))


def timestamp_ns(line: bytes) -> int | None:
    """Return a line's timestamp in nanoseconds since 1970; None for a line without one."""
    match = _AT_START.match(line)
    if match is None:
        return None
    second, fraction, zone = match.groups()
    return _epoch_seconds(second, zone) * 1_000_000_000 + int(fraction)


@lru_cache(maxsize=4096)
def _epoch_seconds(second: bytes, zone: bytes) -> int:
    offset = "+00:00" if zone == b"Z" else zone.decode()
    return int(datetime.fromisoformat(second.decode() + offset).timestamp())


def last_timestamp_ns(block: bytes) -> int | None:
    """Return the timestamp of the last line that has one; `block` is whole lines."""
    end = len(block)
    while end > 0:
        start = block.rfind(b"\n", 0, end - 1) + 1
        timestamp = timestamp_ns(block[start : start + 64])
        if timestamp is not None:
            return timestamp
        end = start
    return None


def without_timestamps(block: bytes) -> bytes:
    """Return the lines as the container wrote them. A line without a timestamp stays as it is."""
    return _AFTER_LINE_END.sub(b"\n", b"\n" + block)[1:]


def timestamps(block: bytes) -> list[str]:
    """Return each line's timestamp as the kubelet wrote it; empty text for a line without one."""
    matches = (_AT_START.match(line) for line in block.removesuffix(b"\n").split(b"\n"))
    return ["" if match is None else match[0].decode().rstrip() for match in matches] if block else []
