"""A Python for which nothing was installed: what a newcomer types before the environment is activated."""

import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]


def bare(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-S", "-E", "-m", *words]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=240)


@pytest.mark.parametrize("words", [("trainer", "--npus", "2"), ("trainer", "--help"), ("launcher", "list")])
def test_it_is_one_line_that_says_which_python_lacks_what(words: tuple[str, ...]) -> None:
    result = bare(*words)
    said = (
        f"error: {sys.executable} has no cyclopts: use the Python that pnas is installed for (`. .venv/bin/activate`)"
    )
    assert (result.returncode, result.stdout, result.stderr) == (2, "", said + "\n")


def test_the_launchers_help_needs_no_package() -> None:
    result = bare("launcher", "submit", "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("Usage: python -m launcher submit")
