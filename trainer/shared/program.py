"""What `python -m trainer` and `python -m launcher` have in common as programs: their first and their last moment."""

import importlib
import sys
from collections.abc import Callable
from typing import NoReturn

from trainer.shared.errors import UsageError

INTERRUPTED = 130


def run(module: str) -> int:
    """Give what was typed to `main` of that module, once it can be imported; the exit code."""
    try:
        main = importlib.import_module(module).main
    except ModuleNotFoundError as error:
        sys.stderr.write(f"error: {_missing_package(error)}\n")
        return UsageError.exit_code
    code: int = main(sys.argv[1:])
    return code


def exit_with(program: Callable[[], int]) -> NoReturn:
    """End with the exit code that it returns, whatever it caught, or that of an interrupt.

    CPython ends a program started by `-m` by SIGINT in place of its exit code if a KeyboardInterrupt has ever left code
    that was given as text, as that by which dataclasses and named tuples are made, though it was caught further out
    (Python/pythonrun.c, run_eval_code_obj). It forgets so when it runs the next such code.
    """
    try:
        code = program()
    except KeyboardInterrupt:
        code = INTERRUPTED
    exec("")
    sys.exit(code)


def _missing_package(error: ModuleNotFoundError) -> str:
    """What to do where Python lacks a package that this one needs: mostly, it is not the environment's Python."""
    package = (error.name or "").partition(".")[0]
    if package in {"", "trainer", "launcher"}:  # a part of this software
        raise error
    return f"{sys.executable} has no {package}: use the Python that pnas is installed for (`. .venv/bin/activate`)"
