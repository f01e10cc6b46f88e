"""Samples of the hardware, in a thread: a reader that hangs costs only its own figures.

The supervisor's loop takes them, and has rank 0 write them. Nothing waits for the thread, also at the end.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress

from trainer.environment.hardware import HOST, CudaReader, Figures, NpuReader, Reader, read_host
from trainer.environment.npu_smi import NpuSmiProgram
from trainer.shared.attempts import timestamp
from trainer.shared.text import visible
from trainer.supervisor import Sample
from trainer.topology import Topology, Visible

INTERVAL_S = 30.0
FIRST_S = 2.0
_MOST_WAITING = 4096
"""Samples of a node whose workers are not running: an hour of 32 devices."""


class HardwareSampler(AbstractContextManager["HardwareSampler"]):
    """Calls the readers from time to time; `fd` can be read when there are samples to take."""

    def __init__(
        self,
        readers: Mapping[str, Reader],
        *,
        node: int = 0,
        ranks: Mapping[str, int],
        interval_s: float | None = None,
        on_end: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Prepare it; entering its context starts it.

        Args:
            readers: By the name of what they ask.
            node: This node's number.
            ranks: The rank of each device of the job, such as `npu:0`; others are left out.
            interval_s: Seconds between two samples of a run that lasts.
            on_end: Called at the end; a reader may still be at work then.
            clock: Returns the time of day.
        """
        self._readers = readers
        self._node = node
        self._ranks = ranks
        self._interval_s = INTERVAL_S if interval_s is None else interval_s
        self._on_end = on_end
        self._clock = clock
        self._lock = threading.Lock()
        self._samples: deque[Sample] = deque(maxlen=_MOST_WAITING)
        self._notes: deque[str] = deque()
        self._told: set[str] = set()
        self._ended = threading.Event()
        self._latest: dict[str, Sample] = {}
        self.fd = self._writer = -1

    def __enter__(self) -> "HardwareSampler":
        self.fd, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        threading.Thread(target=self._run, name="hardware", daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        with self._lock:
            os.close(self.fd)
            os.close(self._writer)
            self.fd = self._writer = -1
        self._on_end()

    def take(self) -> tuple[Sequence[Sample], Sequence[str]]:
        """Return the samples since the last call, and lines about figures that are missing."""
        with self._lock:
            with suppress(BlockingIOError):
                os.read(self.fd, 1 << 12)
            samples, notes = tuple(self._samples), tuple(self._notes)
            self._samples.clear()
            self._notes.clear()
        return samples, notes

    @property
    def latest(self) -> Sequence[Sample]:
        """The last sample of each device; a figure that was not read then is the one before."""
        with self._lock:
            return tuple(self._latest.values())

    def _run(self) -> None:
        for wait_s in waits(self._interval_s):
            if self._ended.wait(wait_s):
                return
            for name, reader in self._readers.items():
                try:
                    figures, problem = reader(), ""
                except OSError as error:
                    figures, problem = {}, visible(str(error.strerror or error))
                self._add(name, figures, problem)

    def _add(self, name: str, figures: Mapping[str, Figures], problem: str) -> None:
        place = {"time": timestamp(self._clock()), "node": self._node}
        with self._lock:
            if self._ended.is_set():
                return
            for device, values in figures.items():
                rank = self._ranks.get(device)
                if rank is None and device != HOST:
                    continue
                sample = {**place, "device": device, **({} if rank is None else {"rank": rank}), **values}
                self._samples.append(sample)
                self._latest[device] = {**self._latest.get(device, {}), **sample}
            if problem and problem not in self._told:
                self._told.add(problem)
                self._notes.append(f"hardware: {name}: {problem}: its figures are left out")
            with suppress(BlockingIOError):
                os.write(self._writer, b".")


def waits(interval_s: float) -> Iterator[float]:
    """Yield the seconds before each sample: more at the start, so that short runs have samples too."""
    wait_s = FIRST_S
    while True:
        yield min(wait_s, interval_s)
        wait_s = min(2 * wait_s, interval_s)


def node_sampler(topology: Topology, visible_: Visible, npu_smi: NpuSmiProgram) -> HardwareSampler:
    """Return the sampler of this node's devices and host."""
    readers: dict[str, Reader] = {"the host": read_host}
    if visible_.kind == "npu":
        readers["npu-smi"] = NpuReader(npu_smi, visible_.ids)
    elif visible_.kind == "cuda":
        readers["NVML"] = CudaReader(visible_.ids)
    ranks = {f"{visible_.kind}:{worker.local_rank}": worker.rank for worker in topology.workers}
    return HardwareSampler(readers, node=topology.node_rank, ranks=ranks, on_end=npu_smi.end)
