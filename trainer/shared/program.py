"""The first and the last step of `python -m trainer` and `python -m launcher`, and what holds for both in between."""

from __future__ import annotations

import gc
import importlib
import io
import os
import re
import resource
import sys
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from trainer.shared.container import OUT_OF_MEMORY
from trainer.shared.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from _typeshed import ReadableBuffer

# Programs of an installed package start each other by the path of start.py.
_SCRIPTS = ("pnas", "pnas-trainer", *(("start.py",) if "site-packages" in Path(__file__).parts else ()))
TRAINER = "pnas-trainer" if Path(sys.argv[0]).name in _SCRIPTS else "python -m trainer"
"""The command line of the trainer, as the user can type it: an installed script if the user began one, or a module."""
INTERRUPTED = 130
TERMINATED = 143
"""Exit code of a command that SIGTERM has ended after it has written what it had."""
BROKEN_PIPE = 141
"""Exit code of a program whose reader has ended, as `| head` does."""
COMMAND_LINE: ContextVar[Sequence[str] | None] = ContextVar("COMMAND_LINE", default=None)
"""The words that this program was started with; None outside `run_program`."""


def run_program(module: str) -> NoReturn:
    """Give the command line to the `main` of a module, and end with its exit code, or with an interrupt's.

    CPython remembers a KeyboardInterrupt that has left code compiled from text, even if outer code caught it.
    Dataclasses and named tuples compile such code. A program that was started by `-m` then ends by SIGINT instead of
    its exit code. The next run of such code clears this state (Python/pythonrun.c, run_eval_code_obj).
    """
    open_closed_streams()
    write_whole_texts()
    try:
        with without_garbage_collector():
            main = importlib.import_module(module).main
        COMMAND_LINE.set(sys.argv[1:])
        code = main(sys.argv[1:])
    except KeyboardInterrupt:
        code = INTERRUPTED
    except RuntimeError as error:
        # Before Python 3.12, an interrupt in `__set_name__`, as of a dataclass's fields, is the cause of one.
        if not isinstance(error.__cause__, KeyboardInterrupt):
            raise
        code = INTERRUPTED
    except (ImportError, MemoryError) as error:
        say_error(f"error: {describe_loading_error(error)}")
        code = UsageError.exit_code
    exec("")
    # Otherwise the collection at the end looks through all that was imported: 13 ms of 0.18 s of `launcher render`.
    gc.freeze()
    sys.exit(code)


@contextmanager
def without_garbage_collector() -> Iterator[None]:
    """Import in this context what stays for good: without the collector, which afterwards never looks through it.

    The collector looks through all objects every few hundred new ones, which takes a third of torch's import (2.4 of 7
    CPU seconds; torch 2.14.1, Python 3.11.7) and a fifteenth of a command line's. `gc.freeze` sets them apart.
    """
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


def open_closed_streams() -> None:
    """Open /dev/null in place of closed standard streams, as `>&-` leaves them.

    The next file that the program opens would otherwise become its standard output, and its children's.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if not _is_open(descriptor):
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, so this one
            os.set_inheritable(descriptor, True)
            setattr(sys, name, os.fdopen(descriptor, mode, closefd=False))


def write_whole_texts() -> None:
    """Make standard streams write all of each text at once where PYTHONUNBUFFERED or `-u` took their buffer.

    Python's own unbuffered streams drop the rest of a text, and say nothing, after a write that the system ends early:
    on a disk that becomes full, when a terminal is resized, or when a signal comes while a pipe is full.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and isinstance(stream.buffer, io.RawIOBase):
            whole = _WholeWriter(io.FileIO(stream.fileno(), "w", closefd=False))
            setattr(sys, name, io.TextIOWrapper(whole, stream.encoding, stream.errors, write_through=True))


class _WholeWriter(io.BufferedWriter):
    """A buffer that is empty after each text, so that neither a crash nor a forked process meets a rest."""

    def write(self, data: ReadableBuffer, /) -> int:
        count = super().write(data)
        self.flush()
        return count


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def say_error(text: str, document: str = "") -> None:
    """Print a line on standard error; an error without a reader must not replace the program's exit code.

    Args:
        document: The error for programs, for standard output; empty if they did not ask.
    """
    _write(sys.stdout, document and f"{document}\n")  # what was printed before comes first
    _write(sys.stderr, f"{text}\n")


def output_fails() -> bool:
    """Return whether standard output does not take what was printed: a text that it has refused is still there."""
    try:
        sys.stdout.flush()
    except OSError:
        return True
    return False


def drop_output(stream: TextIO) -> None:
    """Send a standard stream to nowhere: at exit Python flushes what is left, and would fail a second time."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def describe_loading_error(error: ImportError | MemoryError) -> str:
    """Return in one line why this Python cannot load a package, and the next step.

    Raises:
        ImportError: `error`, if it is a part of this software that is missing.
    """
    package = (getattr(error, "name", None) or "").partition(".")[0]
    if package in {"trainer", "launcher"} or (isinstance(error, ModuleNotFoundError) and not package):
        raise error
    if isinstance(error, ModuleNotFoundError):
        # Mostly it is not the Python of the environment.
        advice = "use the Python that pnas is installed for (`. .venv/bin/activate`)"
        return f"{sys.executable} has no {package}: {advice}"
    # numpy explains at length, and ends with the system's words.
    words = ([line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__])[-1]
    if isinstance(error, ImportError) and not re.search(OUT_OF_MEMORY, str(error)):
        return f"{sys.executable} cannot load a package: {words}; install the packages of pnas again"
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    bound = "" if limit == resource.RLIM_INFINITY else f"this process can use only {limit >> 20} MiB (ulimit -v): "
    return f"{sys.executable} has too little memory ({words}); {bound}give it more"


def _write(stream: TextIO, text: str) -> None:
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        drop_output(stream)
