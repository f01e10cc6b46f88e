"""Durations, intervals and counts as users write and read them: `90`, `90s`, `10m`, `1h30m`, `3 min 2 s`.

A duration that is shown can be typed as an option. The module imports only the standard library.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cyclopts import Token

_UNITS_S = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_DIGITS = 18  # of the largest count: a 64-bit integer has one more
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(d|h|min|m|s)")
LONGEST_S = 2**31 - 1
"""The most that Kubernetes can count; 68 years."""


def count(_type: Any, tokens: Sequence[Token]) -> int:
    """Return the count that an option has on the command line: cyclopts itself would round 1.5.

    Raises:
        ValueError: The text is not a whole number.
    """
    text = tokens[0].value
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f'"{text}" is not a whole number of 0 or more')
    if len(text) > _DIGITS:
        raise ValueError(f'"{text}" is too large')
    return int(text)


def seconds(text: str) -> float:
    """Return the seconds of `90`, `90s`, `10m`, `1h30m` or `3 min 2 s`.

    Raises:
        ValueError: The text has another form; the message names the right ones.
    """
    compact = text.strip().lower()
    if re.fullmatch(r"\d+(\.\d+)?", compact):
        compact += "s"
    if not compact or _PART.sub("", compact).strip():
        raise ValueError(f"`{text}` is no duration; write 90, 90s, 10m or 1h30m")
    total = sum(float(number) * _UNITS_S[unit[0]] for number, unit in _PART.findall(compact))
    if total > LONGEST_S:
        raise ValueError(f"`{text[:80]}` is longer than 68 years")
    return total


def format_duration(duration_s: float) -> str:
    """Return a text such as `0.8 s`, `42 s`, `3 min 2 s`, `5 h 12 min`, `2 d 3 h`."""
    if duration_s < 9.95:
        return f"{max(duration_s, 0):.1f} s"
    whole = round(duration_s)
    parts = ((whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s"))
    first = next(index for index, (number, _) in enumerate(parts) if number)
    return " ".join(f"{number} {unit}" for number, unit in parts[first : first + 2] if number)


@dataclass(frozen=True)
class Interval:
    """A number of steps or a number of seconds; exactly one of the two is set."""

    steps: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, text: str) -> Interval:
        """Read `500` as 500 steps and `10m` as ten minutes.

        Raises:
            ValueError: The text is neither, or zero.
        """
        try:
            has_unit = text.strip()[-1:].isalpha()
            interval = cls(seconds=seconds(text)) if has_unit else cls(steps=int(text))
        except ValueError:
            raise ValueError("write a number of steps (500) or a duration with its unit (10m)") from None
        if (interval.steps or interval.seconds or 0) <= 0:
            raise ValueError("must be more than nothing; write a number of steps (500) or a duration (10m)")
        return interval
