import os

import pytest

from trainer.shared.text import visible


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
