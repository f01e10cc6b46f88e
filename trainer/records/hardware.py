"""Rows about the hardware in metrics.jsonl: written as they come, also while a step, an evaluation or a save hangs."""

import contextlib
import json
import threading
from collections.abc import Iterator
from queue import SimpleQueue

from trainer.records.run_records import Records
from trainer.shared.errors import TrainerError


@contextlib.contextmanager
def writing_samples(records: Records, samples: "SimpleQueue[bytes | None]") -> Iterator[None]:
    """Write samples, lines of JSON, in a thread until the context ends; None in the queue ends it too."""
    thread = threading.Thread(target=_write, args=(records, samples), name="hardware", daemon=True)
    thread.start()
    try:
        yield
    finally:
        samples.put(None)
        thread.join()


def _write(records: Records, samples: "SimpleQueue[bytes | None]") -> None:
    # It ends early if the folder belongs to another run by now, as training will find out itself.
    with contextlib.suppress(TrainerError):
        while (line := samples.get()) is not None:
            records.write_hardware([json.loads(line)])
