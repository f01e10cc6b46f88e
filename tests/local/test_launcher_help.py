"""The help pages: the first screen that a newcomer sees, and the page of each command."""

import os
import subprocess
import sys
from importlib.metadata import version

import pytest

COMMANDS = ("submit", "logs", "status", "wait", "list", "cancel", "delete", "config show")


def page(*words: str, columns: int = 80) -> str:
    """Return a help page that was printed to a pipe."""
    result = subprocess.run(
        [sys.executable, "-m", "launcher", *words],
        env=os.environ | {"COLUMNS": str(columns)},
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    assert result.stderr == ""
    return result.stdout


def test_the_first_screen_gives_the_purpose_three_examples_and_all_commands() -> None:
    lines = page("--help").splitlines()[:45]
    assert lines[0] == "Usage: python -m launcher COMMAND"
    assert lines[2].startswith("Train PNASNet-5")
    assert len([line for line in lines if line.startswith("  python -m launcher ")]) == 3
    commands = {line.split()[0] for line in lines if line.startswith("  ")}
    assert {command.split()[0] for command in COMMANDS} <= commands


def test_the_page_ends_with_every_exit_code() -> None:
    codes = [int(line.split()[0]) for line in page("--help").partition("Exit codes:\n")[2].splitlines()]
    assert codes == [0, 1, 2, 3, 4, 5, 6, 70, 74, 124, 125, 130, 141]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_page_fits_its_terminal_and_has_examples(command: str) -> None:
    text = page(*command.split(), "--help", columns=80)
    assert text.isascii(), "a pipe and a plain terminal would garble boxes"
    assert f"  python -m launcher {command}" in text.partition("Examples:")[2]
    assert max(map(len, text.splitlines())) <= 80
    narrow = page(*command.split(), "--help", columns=40).partition("Examples:")[0]
    assert [line for line in narrow.splitlines() if len(line) > 40 and not line.startswith("Usage")] == []


def test_a_default_stays_on_one_line_and_a_switch_shows_both_forms() -> None:
    text = page("submit", "--help")
    assert "  --[no-]nesterov " in text
    assert "[default: the context's]\n" in text


def test_the_version_is_the_version_of_the_package() -> None:
    assert page("--version") == f"pnas {version('pnas')}\n"
