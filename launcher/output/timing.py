"""Durations as people write and read them: `10m` is 600 seconds, 182 seconds are `3 min 2 s`.

The command line, the tables and the summary share these two functions, so that a shown duration can be typed as an
option.
"""

from launcher.errors import RequestError
from trainer.shared.durations import seconds as seconds_of


def parse_duration(text: str) -> float:
    """Return the seconds of `90`, `90s`, `10m`, `1h30m` or `3 min 2 s`.

    Raises:
        RequestError: the text has another form.
    """
    try:
        return seconds_of(text)
    except ValueError as error:
        raise RequestError(str(error)) from None


def format_duration(seconds: float) -> str:
    """Return a text such as `0.8 s`, `42 s`, `3 min 2 s`, `5 h 12 min`, `2 d 3 h`."""
    if seconds < 9.95:
        return f"{max(seconds, 0):.1f} s"
    whole = round(seconds)
    parts = ((whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s"))
    first = next(place for place, (count, _) in enumerate(parts) if count)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2] if count)
