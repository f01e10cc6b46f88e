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
    done = bare(*words)
    said = (
        f"error: {sys.executable} has no cyclopts: use the Python that pnas is installed for (`. .venv/bin/activate`)"
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said + "\n")


def test_the_launchers_help_needs_no_package() -> None:
    done = bare("launcher", "submit", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: python -m launcher submit")
