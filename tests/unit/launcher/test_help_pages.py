"""The help pages that are kept as text are those of the command line, at every width."""

import io
import json

import pytest
from rich.console import Console

from docs.help_pages import pages, prepared
from launcher.pages import FILE, page

COMMANDS = [words.split() for words in json.loads(FILE.read_text(encoding="utf-8"))]


def test_the_file_is_what_the_command_line_says() -> None:
    assert FILE.read_text(encoding="utf-8") == pages(), "run python -m docs.help_pages"


def test_every_command_is_in_it() -> None:
    listed = {name for name in prepared() if not name.startswith("-")}
    assert {words[0] for words in COMMANDS if words} == listed


@pytest.mark.parametrize("columns", [40, 80, 100, 200])
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_page_is_drawn_as_the_command_line_draws_it(words: list[str], columns: int) -> None:
    drawn = io.StringIO()
    prepared().help_print(words, console=Console(file=drawn, width=columns))
    kept = page([*words, "--help"], columns)
    assert kept is not None
    theirs = drawn.getvalue()
    if max(map(len, kept.splitlines())) > columns:
        # rich breaks the lines of a page's end where a terminal does it by itself.
        end = "\nExamples:" if words else "\nExit codes:"
        kept, theirs = kept.partition(end)[0], theirs.partition(end)[0]
    assert kept == theirs


@pytest.mark.parametrize(
    "words", [["submit"], ["--version"], ["nothing", "--help"], ["submit", "--npus", "8", "--help"]]
)
def test_what_it_does_not_know_is_left_to_the_command_line(words: list[str]) -> None:
    assert page(words) is None
