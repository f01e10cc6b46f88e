"""What `python -m trainer` and `python -m launcher` have in common as programs: their first and their last moment."""

import sys
from typing import NoReturn


def missing_package(error: ModuleNotFoundError) -> str:
    """What to do where Python lacks a package that this one needs: mostly, it is not the environment's Python.

    Raises:
        ModuleNotFoundError: what is missing is a part of this software.
    """
    package = (error.name or "").partition(".")[0]
    if package in {"", "trainer", "launcher"}:
        raise error
    return f"{sys.executable} has no {package}: use the Python that pnas is installed for (`. .venv/bin/activate`)"


def exit_with(code: int) -> NoReturn:
    """End with this exit code, whatever was caught before.

    CPython ends a program started by `-m` by SIGINT in place of its exit code if a KeyboardInterrupt has ever left code
    that was given as text, as that by which dataclasses and named tuples are made, though it was caught further out
    (Python/pythonrun.c, run_eval_code_obj). It forgets so when it runs the next such code.
    """
    exec("")
    sys.exit(code)
