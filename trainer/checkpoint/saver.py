"""Checkpoints are written while training continues: the loop waits for a copy of the state, a thread writes it.

A slow disk makes the next checkpoint late. A full disk costs a checkpoint and a warning; earlier ones stay, and
training continues. Snapshots, which lie in memory, take the same way.
"""

import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.checkpoint.manifest import BadCheckpointError, Blob
from trainer.checkpoint.snapshot import SnapshotPace, drop_snapshots, write_snapshot
from trainer.checkpoint.writing import UNSHARED, CheckpointWriter, prune_checkpoints, scratch_folder, write_checkpoint
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
    """The writer of rank 0, and on other nodes of their first rank, which takes only snapshots.

    The other ranks have no saver; they only take part in gathering the state.
    """

    def __init__(
        self,
        folder: Path,
        *,
        every: Interval,
        keep: int,
        pin_memory: bool,
        evaluated: str,
        description: Mapping[str, str],
        writer: CheckpointWriter = UNSHARED,
        snapshots: Path | None = None,
        pace: SnapshotPace | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Write into `folder`.

        Args:
            every: how often a checkpoint is due.
            keep: how many checkpoints stay.
            pin_memory: whether the copy of the state lies in page-locked memory.
            evaluated: how the names of the evaluated model's tensors begin: `model.` or `ema.`.
            description: what weight files say about themselves.
            writer: the run's attempt.
            snapshots: the folder in memory for snapshots; None for a run without them.
            pace: how often a snapshot is due; None if another rank or no rank decides it.
        """
        self._folder, self._every, self._keep, self._pin = folder, every, keep, pin_memory
        self._evaluated, self._description, self._clock = evaluated, dict(description), clock
        self._writer = writer
        self._buffers: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error: str | None = None
        self._last_step, self._last_time = 0, clock()
        self._late = False
        self._snapshots, self._pace = snapshots, pace
        self._is_snapshot = False
        """Whether the last save was a snapshot."""
        self._snapshot_failed = False
        self._unsaved = False

    def start_at(self, step: int) -> None:
        """Count from `step`, whose state needs no more saving."""
        self._last_step, self._last_time = step, self._clock()
        if self._pace is not None:
            self._pace.start_at(step)

    def save_soon(self) -> None:
        """Make the next checkpoint due at once: the state lies only in memory."""
        self._unsaved = True

    def is_due(self, step: int) -> bool:
        """Return whether to take a checkpoint after `step` steps; it is late while an earlier one is being written."""
        if self._every.steps is not None:
            due = step // self._every.steps > self._last_step // self._every.steps
        else:
            due = self._clock() - self._last_time >= (self._every.seconds or 0)
        due |= self._unsaved
        if due and self._thread is not None and self._thread.is_alive():
            if not self._late and not self._is_snapshot:
                say("warning", text=f"checkpoint of step {step} is late: the one before is still being written")
                self._late = True
            return False
        if due:
            # All ranks will agree on it one step later; until then it must not be due again.
            self.start_at(step)
            self._late = self._unsaved = False
        return due

    def is_snapshot_due(self, step: int, *, window_ends: bool) -> bool:
        """Return whether to take a snapshot after `step` steps; not while an earlier save is being written."""
        writing = self._thread is not None and self._thread.is_alive()
        return self._pace is not None and not writing and self._pace.is_due(step, window_ends=window_ends)

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        content: Mapping[str, Any],
        *,
        weights: Collection[str] = (),
        sync: Callable[[], None],
    ) -> None:
        """Copy the state and start to write it; wait only if the checkpoint before is still being written.

        Args:
            step: optimizer steps since the run's beginning.
            weights: names of the weight files to write from the same copy, without their suffix.
            sync: brings the records to the disk, before a checkpoint that counts their steps is valid.
        """
        self.wait()
        self._copy(tensors)
        # The thread clears it on success: an unexpected error ends the thread silently.
        self._error = "its writer died (its traceback is above)"
        self.start_at(step)
        self._start(False, self._write, step, dict(content), tuple(weights), sync)

    def snapshot(
        self, step: int, tensors: Mapping[str, Tensor], content: Mapping[str, Any], *, began: float | None = None
    ) -> None:
        """Copy the state and start to write it to the memory for snapshots; see `save`.

        Args:
            began: when the loop began to wait for it, on this saver's clock; the default is now.
        """
        began = self._clock() if began is None else began
        self.wait()
        self._copy(tensors)
        self._start(True, self._write_snapshot, step, dict(content), self._clock() - began)

    def drop_snapshots(self) -> None:
        """Delete the snapshots: the run goes back to a checkpoint from before them."""
        if self._snapshots is None:
            return
        try:
            drop_snapshots(self._snapshots)
        except OSError as error:
            say("warning", text=f"{self._snapshots}: {error}; there are no more snapshots")
            self._snapshots = None

    def wait(self) -> str | None:
        """Wait until the last checkpoint is on the disk. Return the reason if it was not saved."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        return error

    def close(self, *, timeout_s: float) -> None:
        """Give a checkpoint that is being written some time to reach the disk, before the process ends."""
        if self._thread is not None:
            self._thread.join(timeout=timeout_s)

    def _start(self, is_snapshot: bool, target: Callable[..., None], *arguments: object) -> None:
        self._is_snapshot = is_snapshot
        self._thread = threading.Thread(target=target, args=arguments, name="checkpoint", daemon=True)
        self._thread.start()

    @torch.no_grad()
    def _copy(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy into buffers that stay: allocating a gigabyte each time takes longer than copying it."""
        for name, tensor in tensors.items():
            if name not in self._buffers:
                self._buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self._pin)
            self._buffers[name].copy_(tensor)

    def _write(self, step: int, content: dict[str, Any], weights: tuple[str, ...], sync: Callable[[], None]) -> None:
        try:
            sync()
            started_at = self._clock()
            if self._snapshots is not None:
                self._write_snapshot(step, content)
            # Before the checkpoint that counts them: a run that is killed in between writes them again.
            self._write_weights(weights)
            manifest = write_checkpoint(self._folder, step, self._blobs(), content, writer=self._writer)
            say("checkpoint", step=step, mib=manifest.bytes / 2**20, write_s=self._clock() - started_at)
            self._error = None
        except (OSError, BadCheckpointError, TrainerError) as error:
            self._error = " ".join(str(error).split())
            say("warning", text=f"checkpoint of step {step} is not saved: {self._error}; earlier ones stay")
            return
        try:
            prune_checkpoints(self._folder, keep=self._keep, spare=[manifest.path], writer=self._writer)
        except (OSError, TrainerError) as error:
            say("warning", text=f"{self._folder}: older checkpoints cannot be deleted: {error}")

    def _write_snapshot(self, step: int, content: dict[str, Any], blocked_s: float | None = None) -> None:
        """Write the buffers to memory. `blocked_s` is how long the loop waited, if this thread does nothing else."""
        if self._snapshots is None:
            return
        try:
            write_snapshot(self._snapshots, step, self._blobs(), content)
        except (OSError, BadCheckpointError) as error:
            if not self._snapshot_failed:
                say("warning", text=f"{self._snapshots}: {error}; the snapshot of step {step} is left out")
            self._snapshot_failed = True
            return
        self._snapshot_failed = False
        if self._pace is not None and blocked_s is not None:
            self._pace.count(blocked_s=blocked_s, processor_s=time.thread_time())

    def _blobs(self) -> dict[str, Blob]:
        return {name: _blob(tensor) for name, tensor in self._buffers.items()}

    def _write_weights(self, names: Collection[str]) -> None:
        """Write the evaluated model's weights from the buffers to files."""
        part = self._evaluated
        state = {name.removeprefix(part): tensor for name, tensor in self._buffers.items() if name.startswith(part)}
        for path in (self._folder / f"{name}.safetensors" for name in names):
            with scratch_folder(self._folder, self._writer) as scratch:
                write_weights(path, state, self._description, partial=scratch / path.name)


def _blob(tensor: Tensor) -> Blob:
    data = tensor.reshape(-1).view(torch.uint8).numpy().data
    return Blob(DTYPES[tensor.dtype], tuple(tensor.shape), data)
