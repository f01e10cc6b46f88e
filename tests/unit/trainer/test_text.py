import io
import os
import sys

import pytest

from trainer.shared.text import escape_what_streams_lack, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\rc\x00d\x07", r"a\nb\rc\x00d\x07"),
        ("\x1b[2J\x1b]52;c;eA==\x07", r"\x1b[2J\x1b]52;c;eA==\x07"),
        ("del \x7f, C1 \x85 \x9b31m", r"del \x7f, C1 \x85 \x9b31m"),
        (os.fsdecode(b"caf\xe9.JPEG"), r"caf\xe9.JPEG"),
        ("half \ud83d", r"half \ud83d"),
        ("\u202egpj.exe\u2066 \u061c\u200f", r"\u202egpj.exe\u2066 \u061c\u200f"),
        ("line\u2028paragraph\u2029", r"line\u2028paragraph\u2029"),
        ("\ufeffn01440764", r"\ufeffn01440764"),
    ],
)
def test_control_characters_become_escapes(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert visible(shown) == shown
    shown.encode()


@pytest.mark.parametrize("text", ["", "train/n01/ü é 猫\u3000.JPEG", "C:\\new\\x1b", "a\tb", "👩\u200d🔬", 'quote "'])
def test_plain_text_stays_as_it_is(text: str) -> None:
    assert visible(text) == text


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", rb"b\xe4d \u2014"), ("latin-1", b"b\xe4d \\u2014"), ("utf-8", "bäd —".encode())]
)
def test_a_stream_shows_letters_that_it_lacks_as_escapes(
    encoding: str, shown: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(written, encoding=encoding))
    escape_what_streams_lack()
    for stream in (sys.stdout, sys.stderr):
        stream.write("bäd —")
        stream.flush()
    assert written.getvalue() == shown * 2
