"""Texts that some YAML reader takes for something else are written in quotes."""

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from trainer.shared.yaml_text import to_yaml

# What YAML 1.1 and 1.2, and Go's and JavaScript's readers, take for a number, a date, a boolean or nothing.
NUMBER = (
    r"[-+]?(0b[01_]+|0o?[0-7_]+|0x[\da-f_]+|(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(e[-+]?\d+)?|\.inf|\.nan"
    r"|\d[\d_]*(:[0-5]?\d)+(\.[\d_]*)?)"
)
DATE = r"\d{4}-\d\d?-\d\d?([t ].*)?"
WORD = r"~|null|y|n|yes|no|on|off|true|false|=|<<"
OTHER_THAN_TEXT = re.compile(f"{NUMBER}|{DATE}|{WORD}", re.IGNORECASE)
AMBIGUOUS = (
    *(
        "1e3",
        "0o17",
        "017",
        "12345678e5",
        "0469839881768e80",
        "81111e1",
        "1_000",
        "0x1F",
        "0b1",
        "+1",
        "-1",
        "1.",
        ".5",
    ),
    *("-1e3", "+.5e-3", "1:30", "190:20:30", ".inf", "-.INF", ".NaN", "Infinity", "-Infinity", "NaN", "1.10", "007"),
    *(
        "2024-11-01",
        "2001-12-14t21:59:43.10-05:00",
        "N",
        "y",
        "No",
        "ON",
        "off",
        "TRUE",
        "~",
        "null",
        "Null",
        "=",
        "<<",
    ),
    *("", " ", "-", "---", "?", ":", "a: b", "a #b", "#a", "!a", "&a", "*a", "@a", "`a", "%a", "{a", "[a", "|", ">"),
    *("a\nb", "a\tb", "a\rb", "a\x85b", "a\u2028b", "\ufeffa", "\x07", "\x1b[1m", "'", '"', "\\n", "é", "\U0001f600"),
)


@pytest.mark.parametrize("text", AMBIGUOUS)
def test_an_ambiguous_text_is_quoted_as_value_and_as_name(text: str) -> None:
    value, name = to_yaml([text]), to_yaml({text: 1})
    assert value[2] in ("'", '"')
    assert name.removeprefix("? ")[0] in ("'", '"')
    assert (yaml.safe_load(value), yaml.safe_load(name)) == ([text], {text: 1})


@given(
    st.one_of(st.text(), st.text("0123456789eExobaf.:_+-tTzZ nNyY~inf"), st.from_regex(OTHER_THAN_TEXT, fullmatch=True))
)
def test_every_text_stays_a_text(text: str) -> None:
    written = to_yaml({"name": text})
    assert yaml.safe_load(written) == {"name": text}
    plain = written.removeprefix("name: ").rstrip("\n")
    assert plain[:1] in ("'", '"') or not OTHER_THAN_TEXT.fullmatch(plain), written


@pytest.mark.parametrize("text", ["pnas-8-npus", "16Gi", "10m", "/data", "--mode", "-m", "registry.example/pnas:0.1.0"])
def test_usual_texts_stay_readable(text: str) -> None:
    assert to_yaml([text]) == f"- {text}\n"
