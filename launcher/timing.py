"""Durations as people write and read them: `10m` is 600 seconds, 182 seconds are `3 min 2 s`.

The command line, the tables and the summary share these two functions, so that a duration that is read off one of
them can be typed into another.
"""

import re

from launcher.errors import RequestError

_UNITS_S = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(d|h|min|m|s)")


def parse_duration(text: str) -> float:
    """Seconds of `90`, `90s`, `10m`, `1h30m` or `3 min 2 s`.

    Raises:
        RequestError: it is none of these.
    """
    compact = text.strip().lower()
    if re.fullmatch(r"\d+(\.\d+)?", compact):
        return float(compact)
    if not compact or _PART.sub("", compact).strip():
        raise RequestError(f"`{text}` is no duration; write 90, 90s, 10m or 1h30m")
    return sum(float(number) * _UNITS_S[unit[0]] for number, unit in _PART.findall(compact))


def format_duration(seconds: float) -> str:
    """`0.8 s`, `42 s`, `3 min 2 s`, `5 h 12 min`, `2 d 3 h`."""
    if seconds < 9.95:
        return f"{max(seconds, 0):.1f} s"
    whole = round(seconds)
    parts = ((whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s"))
    first = next(place for place, (count, _) in enumerate(parts) if count)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2] if count)
