"""A run's progress and this node's hardware in Prometheus' format, while the run goes on.

Each node serves its devices; the node of rank 0 also the progress, which it reads from the run's metrics.jsonl. A
scrape never reaches a worker, and a file system that hangs costs only the figures of the progress.
"""

import contextlib
import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from trainer.environment.sampler import HardwareSampler
from trainer.run.attempt import Attempt
from trainer.shared.attempts import time_of
from trainer.shared.errors import UsageError
from trainer.topology import Topology

_MIB = 1 << 20
_KINDS = ("step", "progress", "eval", "attempt")

# (kind of row, field, name, help); times and sizes are in base units, as Prometheus advises.
PROGRESS = (
    ("step", "global_step", "step", "The last step in the records, from 0"),
    ("step", "epoch", "epoch", "The epoch of this step, from 0"),
    ("step", "loss", "loss", "The loss of this step"),
    ("step", "lr", "learning_rate", "The learning rate of this step"),
    ("progress", "fps", "images_per_second", "Images per second of the whole job"),
    ("progress", "top1", "train_top1_percent", "Accuracy on the training images"),
    ("progress", "done", "done_percent", "The share of the run's work that is done"),
    ("progress", "left_s", "left_seconds", "The time that the run still takes"),
    ("progress", "left_low_s", "left_low_seconds", "The lower bound of the time left"),
    ("progress", "left_high_s", "left_high_seconds", "The upper bound of the time left"),
    ("progress", "time", "progress_timestamp_seconds", "When the last progress was recorded"),
    ("eval", "top1", "eval_top1_percent", "Top-1 accuracy of the last evaluation"),
    ("eval", "top5", "eval_top5_percent", "Top-5 accuracy of the last evaluation"),
    ("eval", "loss", "eval_loss", "The loss of the last evaluation"),
    ("eval", "epoch", "eval_epoch", "The epoch of the last evaluation, from 0"),
    ("attempt", "attempt", "attempt", "The number of the run's attempt"),
)
# (field of a sample, name, factor, help)
HARDWARE = (
    ("use_percent", "device_use_percent", 1, "Use of the device: of an NPU's AI cores, of all processors of a host"),
    ("memory_used_mib", "device_memory_used_bytes", _MIB, "Used memory of the device"),
    ("memory_mib", "device_memory_bytes", _MIB, "Memory of the device"),
    ("temperature_c", "device_temperature_celsius", 1, "Temperature of the device"),
    ("power_w", "device_power_watts", 1, "Power of the device's card"),
    ("ecc_corrected", "device_ecc_corrected", 1, "Corrected errors of the memory since the driver was loaded"),
    ("ecc_uncorrected", "device_ecc_uncorrected", 1, "Other errors of the memory since the driver was loaded"),
    ("healthy", "device_healthy", 1, "1 if the device says that its health is OK, else 0"),
)


class _LatestRows:
    """The latest row of each kind in a file that grows, or that a shorter one replaces."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._file: tuple[int, int] | None = None
        self._read = 0
        self._lines: dict[str, bytes] = {}

    def rows(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the rows; the rows of the scrape before if the file cannot be read, or another scrape reads it."""
        if self._lock.acquire(blocking=False):
            with contextlib.ExitStack() as stack:
                stack.callback(self._lock.release)
                with contextlib.suppress(OSError):
                    self._read_on()
        return {kind: row for kind, line in list(self._lines.items()) if (row := _table(line)) is not None}

    def _read_on(self) -> None:
        with self._path.open("rb") as file:
            status = self._path.stat()
            if self._file != (status.st_dev, status.st_ino) or status.st_size < self._read:
                self._file, self._read = (status.st_dev, status.st_ino), 0
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                for kind in _KINDS:
                    if line.startswith(b'{"kind": "%s"' % kind.encode()):
                        self._lines[kind] = line


def _table(line: bytes) -> Mapping[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


class RunCollector(Collector):
    """The figures of one run on this node, read at each scrape."""

    def __init__(
        self, run: Path, labels: Mapping[str, str], sampler: HardwareSampler, *, with_progress: bool = True
    ) -> None:
        """`labels` describe the run, with its name as `run`, which each figure has too."""
        self._labels = labels
        self._sampler = sampler
        self._latest = _LatestRows(run / "metrics.jsonl") if with_progress else None

    def collect(self) -> Iterable[GaugeMetricFamily | InfoMetricFamily]:
        """Yield what is known now; unknown figures are left out."""
        yield InfoMetricFamily("pnas_run", "The run that this process works on", value=dict(self._labels))
        run = self._labels["run"]
        rows = {} if self._latest is None else self._latest.rows()
        for kind, field, name, text in PROGRESS:
            value = _number(field, rows.get(kind, {}))
            if value is not None:
                family = GaugeMetricFamily(f"pnas_{name}", f"{text}.", labels=["run"])
                family.add_metric([run], value)
                yield family
        samples = self._sampler.latest
        for field, name, factor, text in HARDWARE:
            family = GaugeMetricFamily(f"pnas_{name}", f"{text}.", labels=["run", "node", "device", "rank"])
            for sample in samples:
                value = _number(field, sample)
                if value is not None:
                    place = [str(sample.get(label, "")) for label in ("node", "device", "rank")]
                    family.add_metric([run, *place], value * factor)
            if family.samples:
                yield family


def _number(field: str, row: Mapping[str, Any]) -> float | None:
    if field == "healthy":
        return float(row["health"] == "OK") if "health" in row else None
    value = row.get(field)
    if field == "time":
        return time_of(value)
    return float(value) if isinstance(value, int | float) else None


@contextlib.contextmanager
def serving(attempt: Attempt, topology: Topology, sampler: HardwareSampler, *, port: int) -> Iterator[None]:
    """Serve the figures at `http://HOST:PORT/metrics`, on every address of this machine.

    Under torchrun only the node's first process does.

    Raises:
        UsageError: The port is taken, or needs privileges.
    """
    if topology.workers[0].local_rank > 0:
        yield
        return
    config = attempt.config
    labels = {"run": attempt.run.name, "mode": config.mode, "model": config.model}
    registry = CollectorRegistry()
    registry.register(
        RunCollector(attempt.run, labels, sampler, with_progress=any(worker.rank == 0 for worker in topology.workers))
    )
    try:
        server, _ = start_http_server(port, registry=registry)
    except OSError as error:
        raise UsageError(f"--metrics-port {port}: {error.strerror}: choose another port") from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
