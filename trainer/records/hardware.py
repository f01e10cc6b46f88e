"""Samples of the hardware in rank 0: rows of metrics.jsonl, also while a step hangs, and the latest ones."""

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from queue import SimpleQueue
from typing import Any

from trainer.records.run_records import Records
from trainer.shared.errors import TrainerError

FIGURES = ("use_percent", "memory_percent", "temperature_c", "power_w")
UNKNOWN = "-"


class LatestSamples:
    """The latest sample of each rank's device and of each node's host; one thread adds them, another one reads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of_ranks: dict[int, Mapping[str, Any]] = {}
        self._of_hosts: dict[int, Mapping[str, Any]] = {}

    def add(self, sample: Mapping[str, Any]) -> None:
        """Replace the sample before of the same device."""
        with self._lock:
            if "rank" in sample:
                self._of_ranks[sample["rank"]] = sample
            else:
                self._of_hosts[sample["node"]] = sample

    def fields(self) -> dict[str, str]:
        """Return the figures of all ranks in their order, and of all hosts, for a line; nothing of what none has."""
        with self._lock:
            texts = {name: _in_order(self._of_ranks, name) for name in FIGURES}
            texts["host_use_percent"] = _in_order(self._of_hosts, "use_percent")
        return {name: text for name, text in texts.items() if text.strip(f"{UNKNOWN} ")}


def _in_order(samples: Mapping[int, Mapping[str, Any]], name: str) -> str:
    values = (_figure(samples.get(number, {}), name) for number in range(max(samples, default=-1) + 1))
    return " ".join(UNKNOWN if value is None else f"{value:.0f}" for value in values)


def _figure(sample: Mapping[str, Any], name: str) -> float | None:
    if name != "memory_percent":
        return sample.get(name)
    used, whole = sample.get("memory_used_mib"), sample.get("memory_mib")
    return 100 * used / whole if used is not None and whole else None


@contextlib.contextmanager
def writing_samples(records: Records, samples: "SimpleQueue[bytes | None]") -> Iterator[LatestSamples]:
    """Write samples, lines of JSON, in a thread until the context ends; None in the queue ends it too."""
    latest = LatestSamples()
    thread = threading.Thread(target=_write, args=(records, samples, latest), name="hardware", daemon=True)
    thread.start()
    try:
        yield latest
    finally:
        samples.put(None)
        thread.join()


def _write(records: Records, samples: "SimpleQueue[bytes | None]", latest: LatestSamples) -> None:
    # It ends early if the folder belongs to another run by now, as training will find out itself.
    with contextlib.suppress(TrainerError):
        while (line := samples.get()) is not None:
            sample = json.loads(line)
            latest.add(sample)
            records.write_hardware([sample])
