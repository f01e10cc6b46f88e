"""Durations as people write them: `90`, `90s`, `10m`, `1h30m`. A leaf, which both programs' command lines import."""

import re

_UNITS_S = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(d|h|min|m|s)")
_LONGEST_S = 2**31 - 1
"""As many as Kubernetes can count; 68 years."""


def seconds(text: str) -> float:
    """Seconds of `90`, `90s`, `10m`, `1h30m` or `3 min 2 s`.

    Raises:
        ValueError: it is none of these; the text says what is.
    """
    compact = text.strip().lower()
    if re.fullmatch(r"\d+(\.\d+)?", compact):
        compact += "s"
    if not compact or _PART.sub("", compact).strip():
        raise ValueError(f"`{text}` is no duration; write 90, 90s, 10m or 1h30m")
    total = sum(float(number) * _UNITS_S[unit[0]] for number, unit in _PART.findall(compact))
    if total > _LONGEST_S:
        raise ValueError(f"`{text[:80]}` is longer than 68 years")
    return total
