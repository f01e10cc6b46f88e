"""Text from outside (a file's name, a job's line) as one visible line: control characters become escapes.

A terminal obeys control characters, and a log loses its one record per line by them. A name that is not valid text
cannot be written to a stream at all.
"""

import re
import sys

_SHORT = {"\n": r"\n", "\r": r"\r"}
# C0 without the tab, DEL and C1; marks that change the reading direction; line ends of Unicode; byte order mark;
# halves of characters. Python decodes a byte 0xNN that is not text as U+DCNN.
_INVISIBLE = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def visible(text: str) -> str:
    r"""Return `text` with `\n`, `\x1b`, `\u202e` for characters that control a terminal or cannot be written.

    A byte that is not valid UTF-8, which Python holds as a lone surrogate, becomes `\xe9`. Tabs, backslashes and all
    other text stay as they are, so that a second call changes nothing.
    """
    return _INVISIBLE.sub(_escape, text)


def visible_bytes(data: bytes) -> str:
    r"""Return UTF-8 text for a terminal as `visible` does; bytes that are not text become `\xe9`."""
    return visible(data.decode("utf-8", "surrogateescape"))


def escape_what_streams_lack() -> None:
    """Let stdout and stderr write a letter that their encoding lacks as an escape, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # it is None if the user has closed it
            stream.reconfigure(errors="backslashreplace")


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00
    return _SHORT.get(character) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
