"""The check for plain English sees comments, docstrings, test names and Markdown, and gives the line and the advice."""

from pathlib import Path

import pytest

from tests.plain_english import check, main

PYTHON = '''"""A module.

It is read so
many times.
"""

WORD = "anew"  # what a string holds is data


def test_nobody_is_told():
    # A comment of two lines, `mend` is
    # code, and this one lies beside it.
    return WORD
'''
MARKDOWN = """# Title

Two lines, and
the file alone is read.

```python
x = anew
```

Whoever reads `anew` starts anew.
"""


def test_prose_of_python_is_checked_and_code_is_not() -> None:
    found = [(finding.line, finding.words) for finding in check(Path("x.py"), PYTHON)]
    assert sorted(found) == [(4, "so many"), (10, "nobody"), (12, "beside")]


def test_the_messages_of_the_programs_are_checked() -> None:
    source = 'def f(x):\n    """Return it."""\n    raise ValueError(f"{x}: there is none; mend it")\nKEY = "anew"\n'
    assert {finding.words for finding in check(Path("launcher/x.py"), source)} == {"is none", "mend", "anew"}
    assert list(check(Path("tests/x.py"), source)) == []


def test_prose_of_markdown_is_checked_and_code_is_not() -> None:
    found = [(finding.line, finding.words) for finding in check(Path("x.md"), MARKDOWN)]
    assert sorted(found) == [(4, "file alone"), (10, "Whoever"), (10, "anew")]


@pytest.mark.parametrize(
    "sentence",
    ["There is none.", "A log. Who reads it waits.", "It has a thread of its own.", "It copies those that differ."],
)
def test_a_sentence_without_a_plain_noun_is_found(sentence: str) -> None:
    assert list(check(Path("x.md"), sentence))


def test_plain_sentences_pass() -> None:
    text = "What is new: the kubelet restarts only the pod. Who is asked? The user. Leave it alone. It stands alone.\n"
    assert list(check(Path("x.md"), text)) == []


def test_each_finding_is_printed_with_its_line_and_its_advice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.md"
    file.write_text("One.\n\nBegin anew.\n")
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().out.splitlines()[0] == f"{file}:3: 'anew': again"
