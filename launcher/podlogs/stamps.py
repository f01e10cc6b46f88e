"""The time in front of each line, as the kubelet writes it: `2026-11-24T16:50:47.123456789+08:00 text`.

It has nine digits and the offset of the node's zone (`timeFormatOut` in cri-client's pkg/logs), so stamps are
compared as numbers and never as text. Whole blocks are handled at once: a log has millions of lines.
"""

import re
from datetime import datetime
from functools import lru_cache

_STAMP = rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.(\d{9})(Z|[+-]\d\d:\d\d) "
_AT_START = re.compile(_STAMP)
# The line end comes first, because a search for one byte is by far the fastest.
_AFTER_LINE_END = re.compile(rb"\n" + _STAMP.replace(rb"(", rb"(?:").replace(rb"(?:Z", rb"(?:Z"))


def stamp_ns(line: bytes) -> int | None:
    """Nanoseconds since 1970, or None of a line without a stamp."""
    match = _AT_START.match(line)
    if match is None:
        return None
    second, fraction, zone = match.groups()
    return _seconds(second, zone) * 1_000_000_000 + int(fraction)


@lru_cache(maxsize=4096)
def _seconds(second: bytes, zone: bytes) -> int:
    offset = "+00:00" if zone == b"Z" else zone.decode()
    return int(datetime.fromisoformat(second.decode() + offset).timestamp())


def last_stamp_ns(block: bytes) -> int | None:
    """The stamp of the last line that has one; `block` is whole lines."""
    end = len(block)
    while end > 0:
        start = block.rfind(b"\n", 0, end - 1) + 1
        found = stamp_ns(block[start : start + 64])
        if found is not None:
            return found
        end = start
    return None


def without_stamps(block: bytes) -> bytes:
    """The lines as the container wrote them. A line without a stamp is left as it is."""
    return _AFTER_LINE_END.sub(b"\n", b"\n" + block)[1:]


def stamps(block: bytes) -> list[str]:
    """The stamp of each line as it was written; empty for a line without one."""
    found = (_AT_START.match(line) for line in block.removesuffix(b"\n").split(b"\n"))
    return ["" if match is None else match[0].decode().rstrip() for match in found] if block else []
