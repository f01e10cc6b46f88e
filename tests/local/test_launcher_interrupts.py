"""Ctrl-C ends the launcher, even where the interpreter drops the exception that it raises."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import signal, sys, time, weakref
from launcher.exits import run
from launcher.interrupts import keep_interrupts

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
keep_interrupts()
sys.exit(run(command))
"""


@pytest.mark.parametrize("place", ["in_a_finaliser", "in_a_callback"])
def test_ctrl_c_is_not_lost_where_the_interpreter_drops_exceptions(place: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, place],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_other_exceptions_that_are_dropped_are_shown_as_ever() -> None:
    program = (
        "from launcher.interrupts import keep_interrupts\nkeep_interrupts()\n"
        "class Broken:\n    def __del__(self): raise ValueError('oh')\nBroken()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert "ValueError: oh" in done.stderr
