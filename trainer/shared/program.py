"""The first and the last step of `python -m trainer` and `python -m launcher`."""

import importlib
import sys
from collections.abc import Callable
from typing import NoReturn

from trainer.shared.errors import UsageError

INTERRUPTED = 130


def run_program(module: str) -> int:
    """Import a module and give the command line to its `main`; return the exit code."""
    try:
        main = importlib.import_module(module).main
    except ModuleNotFoundError as error:
        sys.stderr.write(f"error: {_missing_package(error)}\n")
        return UsageError.exit_code
    code: int = main(sys.argv[1:])
    return code


def exit_with(program: Callable[[], int]) -> NoReturn:
    """Run `program` and end with its exit code, or with an interrupt's.

    CPython remembers a KeyboardInterrupt that has left code compiled from text, even if outer code caught it.
    Dataclasses and named tuples compile such code. A program that was started by `-m` then ends by SIGINT instead of
    its exit code. The next run of such code clears this state (Python/pythonrun.c, run_eval_code_obj).
    """
    try:
        code = program()
    except KeyboardInterrupt:
        code = INTERRUPTED
    exec("")
    sys.exit(code)


def _missing_package(error: ModuleNotFoundError) -> str:
    """Return the advice if Python lacks a needed package: mostly, it is not the Python of the environment."""
    package = (error.name or "").partition(".")[0]
    if package in {"", "trainer", "launcher"}:  # a part of this software
        raise error
    return f"{sys.executable} has no {package}: use the Python that pnas is installed for (`. .venv/bin/activate`)"
