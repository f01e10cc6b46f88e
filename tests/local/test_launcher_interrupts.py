"""Ctrl-C ends a program with the documented exit code, even where the interpreter drops or stores the exception."""

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
    references.append(weakref.ref(thing, ctrl_c))

def command():
    globals()[sys.argv[1]]()
    for _ in range(6000):
        time.sleep(0.01)

references = []
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
redeliver_interrupts()
sys.exit(run_command(command))
"""
# Raises Ctrl-C in code from a string, as an import may run it: a dataclass makes its methods so.
INTERRUPT_IN_EXEC = """
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


def test_other_dropped_exceptions_are_still_shown() -> None:
    program = (
        "from launcher.exits import redeliver_interrupts\nredeliver_interrupts()\n"
        "class Broken:\n    def __del__(self): raise ValueError('oh')\nBroken()"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert "ValueError: oh" in result.stderr


@pytest.mark.parametrize(
    ("words", "module", "message"),
    [
        (("launcher", "list"), "launcher.exits", ""),
        (("launcher", "list"), "launcher.commands.watch", "interrupted\n"),
        (("launcher", "submit", "--data-path", "x"), "launcher.local.preflight", "interrupted\n"),
        (("trainer", "--data-path", "x"), "trainer.shared.config", ""),
        (("trainer", "data", "digits", "--to", "x"), "trainer.data.digits", "error: interrupted\n"),
        (("trainer", "--data-path", "x"), "trainer.run.attempt", "error: interrupted before any worker was started\n"),
    ],
)
def test_ctrl_c_in_code_from_a_string_gives_the_documented_exit_code(
    tmp_path: Path, words: tuple[str, ...], module: str, message: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(INTERRUPT_IN_EXEC.format(module=module))
    result = subprocess.run(
        [sys.executable, "-m", *words],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert (result.returncode, result.stderr) == (130, message)
