"""Starts a worker: imports it without the garbage collector, and runs its task."""

import sys
from typing import NoReturn

from trainer.shared.errors import UsageError
from trainer.shared.program import describe_loading_error, without_garbage_collector, write_whole_texts


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
