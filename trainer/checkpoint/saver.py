"""Checkpoints beside the training: the loop waits for a copy of the state, a thread writes and verifies it.

A disk that is slow makes the next checkpoint late, and one that is full costs a checkpoint and a warning; the previous
ones stay, and training goes on.
"""

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.checkpoint.files import BadCheckpointError, Blob, prune, write
from trainer.model.weights import write_weights
from trainer.records.run_records import say
from trainer.shared.durations import Interval
from trainer.shared.errors import TrainerError

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Saver:
    """Rank 0's writer. The other ranks have none; they only take part in gathering the state."""

    def __init__(self, folder: Path, *, every: Interval, keep: int, pin_memory: bool) -> None:
        self._folder, self._every, self._keep, self._pin = folder, every, keep, pin_memory
        self._buffers: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error: str | None = None
        self._last_step, self._last_time = 0, time.monotonic()
        self._late = False

    def start_at(self, step: int) -> None:
        """The state of `step` needs no more saving."""
        self._last_step, self._last_time = step, time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is to be taken after `step` steps; late if the one before is still being written."""
        if self._every.steps is not None:
            due = step // self._every.steps > self._last_step // self._every.steps
        else:
            due = time.monotonic() - self._last_time >= (self._every.seconds or 0)
        if due and self._busy():
            if not self._late:
                say("warning", text=f"checkpoint of step {step} is late: the one before is still being written")
            self._late = True
            return False
        if due:
            # All ranks will agree to it a step later; until then it is not due once more.
            self.start_at(step)
            self._late = False
        return due

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        content: Mapping[str, Any],
        *,
        weights: Mapping[str, Mapping[str, str]],
        sync: Callable[[], None],
    ) -> None:
        """Copy the state and start to write it; waits only if the checkpoint before is still being written.

        Args:
            step: optimizer steps since the run's beginning.
            weights: weight files to write beside it, from the same copy: path to description.
            sync: brings the records to the disk before the checkpoint that knows of them counts.
        """
        self.wait()
        self._copy(tensors)
        # Until the thread knows better: an error that nobody foresaw ends it without another word.
        self._error = "its writer died (its traceback is above)"
        self.start_at(step)
        self._thread = threading.Thread(
            target=self._write, args=(step, dict(content), dict(weights), sync), name="checkpoint", daemon=True
        )
        self._thread.start()

    def wait(self) -> str | None:
        """Wait until the last checkpoint is on the disk, or return why it is not."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        return error

    def leave(self, *, within_s: float) -> None:
        """Give the checkpoint that is being written some time to get to the disk, before the process ends."""
        if self._thread is not None:
            self._thread.join(timeout=within_s)

    def _busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _copy(self, tensors: Mapping[str, Tensor]) -> None:
        """Into buffers that are kept: allocating a gigabyte anew takes longer than copying it."""
        for name, tensor in tensors.items():
            if name not in self._buffers:
                self._buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self._pin)
            self._buffers[name].copy_(tensor)

    def _write(
        self,
        step: int,
        content: dict[str, Any],
        weights: dict[str, Mapping[str, str]],
        sync: Callable[[], None],
    ) -> None:
        try:
            sync()
            began = time.monotonic()
            # Before the checkpoint that knows of them: a run that is killed in between makes them once more.
            self._write_weights(weights, "model." if content["state"]["ema_updates"] is None else "ema.")
            manifest = write(
                self._folder, step, {name: _blob(tensor) for name, tensor in self._buffers.items()}, content
            )
            say("checkpoint", step=step, mib=manifest.bytes / 2**20, write_s=time.monotonic() - began)
            self._error = None
        except (OSError, BadCheckpointError, TrainerError) as error:
            self._error = " ".join(str(error).split())
            say("warning", text=f"checkpoint of step {step} is not saved: {self._error}; earlier ones stay")
            return
        try:
            prune(self._folder, keep=self._keep, spare=[manifest.path])
        except OSError as error:
            say("warning", text=f"{self._folder}: older checkpoints cannot be deleted: {error}")

    def _write_weights(self, files: Mapping[str, Mapping[str, str]], part: str) -> None:
        """Write the weights in the buffers whose names begin with `part`."""
        if files:
            self._folder.mkdir(exist_ok=True)
        state = {name.removeprefix(part): tensor for name, tensor in self._buffers.items() if name.startswith(part)}
        for name, description in files.items():
            write_weights(self._folder / name, state, dict(description))


def _blob(tensor: Tensor) -> Blob:
    data = tensor.reshape(-1).view(torch.uint8).numpy().data
    return Blob(DTYPES[tensor.dtype], tuple(tensor.shape), data)
