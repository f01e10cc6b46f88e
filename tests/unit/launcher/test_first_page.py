"""The first help page, which is drawn without cyclopts, agrees with the command line."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from launcher.cli import app
from launcher.commands import COMMANDS, CommandEntry
from launcher.errors import ExitCode
from launcher.first_page import first_page


@pytest.mark.parametrize("columns", [40, 80, 100, 200])
def test_the_first_page_equals_cyclopts_drawing(columns: int) -> None:
    drawn = io.StringIO()
    for entry in COMMANDS:
        assert app[entry.name], "cyclopts lists the summary of an imported command"
    app.help_print([], console=Console(file=drawn, width=columns))
    page, expected = first_page(columns), drawn.getvalue()
    if max(map(len, page.splitlines())) > columns:
        # rich breaks the long lines of the exit codes where a terminal breaks them itself.
        page, expected = page.partition("\nExit codes:")[0], expected.partition("\nExit codes:")[0]
    assert page == expected


@pytest.mark.parametrize("entry", COMMANDS, ids=lambda entry: str(entry.name))
def test_a_summary_is_the_first_sentence_of_the_commands_own_page(entry: CommandEntry) -> None:
    command = app[entry.name]
    text = command.help if command.default_command is None else command.default_command.__doc__
    assert str(text).splitlines()[0] == entry.summary


@pytest.mark.parametrize("entry", COMMANDS, ids=lambda entry: str(entry.name))
def test_a_commands_own_page_says_all_that_its_docstring_says(entry: CommandEntry) -> None:
    drawn = io.StringIO()
    app.help_print([entry.name], console=Console(file=drawn, width=100))
    command = app[entry.name].default_command
    docstring = "" if command is None else str(command.__doc__)
    assert " ".join(docstring.split()) in " ".join(drawn.getvalue().split())


@pytest.mark.parametrize("words", [(), ("--help",), ("list", "--help"), ("--version",)])
def test_a_page_that_cannot_be_written_is_one_line(words: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        process = subprocess.run(
            [sys.executable, "-m", "launcher", *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert process.returncode == ExitCode.IO_ERROR
    assert process.stderr == "error: standard output: No space left on device; a running job goes on\n"
