"""A Python without any package: a newcomer may forget to activate the environment."""

import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]


def run_without_packages(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-S", "-E", "-m", *words]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=240)


@pytest.mark.parametrize("words", [("trainer", "--npus", "2"), ("trainer", "--help"), ("launcher", "list")])
def test_one_line_names_the_python_and_the_missing_package(words: tuple[str, ...]) -> None:
    result = run_without_packages(*words)
    message = (
        f"error: {sys.executable} has no cyclopts: use the Python that pnas is installed for (`. .venv/bin/activate`)"
    )
    assert (result.returncode, result.stdout, result.stderr) == (2, "", message + "\n")


@pytest.mark.parametrize("words", [(), ("--help",)])
def test_the_launchers_first_page_needs_no_package(words: tuple[str, ...]) -> None:
    result = run_without_packages("launcher", *words)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("Usage: python -m launcher COMMAND")
