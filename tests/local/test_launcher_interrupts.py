"""Ctrl-C ends a program with its exit code, even where the interpreter drops the exception, or remembers it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import signal, sys, time, weakref
from launcher.exits import redeliver_interrupts, run_command

def ctrl_c(*_):
    signal.raise_signal(signal.SIGINT)

class Finalised:
    def __del__(self):
        ctrl_c()

class Thing:
    pass

def in_a_finaliser():
    Finalised()

def in_a_callback():
    thing = Thing()
    kept.append(weakref.ref(thing, ctrl_c))

def command():
    globals()[sys.argv[1]]()
    for _ in range(6000):
        time.sleep(0.01)

kept = []
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
redeliver_interrupts()
sys.exit(run_command(command))
"""
# As Ctrl-C while a dataclass is made by a module that is imported.
IN_CODE_THAT_IS_TEXT = """
import signal, sys

class Finder:
    @staticmethod
    def find_spec(name, *_):
        if name == {module!r}:
            exec("signal.raise_signal(signal.SIGINT)")

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Finder)
"""


@pytest.mark.parametrize("place", ["in_a_finaliser", "in_a_callback"])
def test_ctrl_c_is_not_lost_where_the_interpreter_drops_exceptions(place: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, place],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert (result.returncode, result.stderr) == (130, "interrupted\n")


def test_other_exceptions_that_are_dropped_are_shown_as_ever() -> None:
    program = (
        "from launcher.exits import redeliver_interrupts\nredeliver_interrupts()\n"
        "class Broken:\n    def __del__(self): raise ValueError('oh')\nBroken()"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert "ValueError: oh" in result.stderr


@pytest.mark.parametrize(
    ("words", "module", "said"),
    [
        (("launcher", "list"), "launcher.app", ""),
        (("launcher", "list"), "launcher.commands.watch", "interrupted\n"),
        (("launcher", "submit", "--data-path", "x"), "launcher.local.preflight", "interrupted\n"),
        (("trainer", "--data-path", "x"), "trainer.shared.config", ""),
        (("trainer", "--data-path", "x"), "trainer.run.attempt", "error: interrupted before any worker was started\n"),
    ],
)
def test_ctrl_c_in_code_that_is_text_gives_the_documented_exit_code(
    tmp_path: Path, words: tuple[str, ...], module: str, said: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(IN_CODE_THAT_IS_TEXT.format(module=module))
    result = subprocess.run(
        [sys.executable, "-m", *words],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert (result.returncode, result.stderr) == (130, said)
