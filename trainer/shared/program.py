"""The first and the last step of `python -m trainer` and `python -m launcher`."""

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from trainer.shared.errors import UsageError

INTERRUPTED = 130


def run_program(module: str) -> NoReturn:
    """Give the command line to the `main` of a module, and end with its exit code, or with an interrupt's.

    CPython remembers a KeyboardInterrupt that has left code compiled from text, even if outer code caught it.
    Dataclasses and named tuples compile such code. A program that was started by `-m` then ends by SIGINT instead of
    its exit code. The next run of such code clears this state (Python/pythonrun.c, run_eval_code_obj).
    """
    try:
        code = _import_main(module)(sys.argv[1:])
    except KeyboardInterrupt:
        code = INTERRUPTED
    exec("")
    sys.exit(code)


def _import_main(module: str) -> Callable[[Sequence[str]], int]:
    """Return the module's `main`; if Python lacks a needed package, say so and end."""
    try:
        main: Callable[[Sequence[str]], int] = importlib.import_module(module).main
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in {"", "trainer", "launcher"}:  # a part of this software
            raise
        # Mostly it is not the Python of the environment.
        advice = "use the Python that pnas is installed for (`. .venv/bin/activate`)"
        sys.stderr.write(f"error: {sys.executable} has no {package}: {advice}\n")
        sys.exit(UsageError.exit_code)
    return main
