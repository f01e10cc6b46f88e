"""Starts a worker: imports it without the garbage collector, and runs its task.

The objects of torch's import stay for good. The collector would look through it every few hundred new objects,
which takes a third of the import (2.4 of 7 CPU seconds; torch 2.14.1, Python 3.11.7). `gc.freeze` sets these objects
apart, so that they cost nothing later.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from trainer.shared.errors import UsageError
from trainer.shared.program import describe_loading_error, write_whole_texts


def main() -> NoReturn:
    """Run the task in the environment, and end the process with its exit code."""
    write_whole_texts()
    try:
        with without_garbage_collector():
            from trainer.worker.run import main as run_worker  # noqa: PLC0415  # see above
    except (ImportError, MemoryError) as error:
        # The supervisor takes a line that begins so for the cause.
        sys.stdout.write(f"error {describe_loading_error(error)}\n")
        sys.exit(UsageError.exit_code)
    run_worker()


@contextmanager
def without_garbage_collector() -> Iterator[None]:
    """Import what stays for good: without the collector, which afterwards never looks through it."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()
