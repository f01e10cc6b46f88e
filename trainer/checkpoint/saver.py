"""Checkpoints are written while training continues: the loop waits for a copy of the state, a thread writes it.

A slow disk makes the next checkpoint late. A full disk costs a checkpoint and a warning; earlier ones stay, and
training continues. Snapshots, which lie in memory, take the same way. A checkpoint is first a snapshot, and goes to the
disk from the snapshot's file: so the copy is free for the next snapshot, however slow the disk is.
"""

import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from trainer.checkpoint.manifest import STATE_FILE, BadCheckpointError, Blob
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
            pace: how often a snapshot is due; None for a run without them.
        """
        self._folder, self._every, self._keep, self._pin = folder, every, keep, pin_memory
        self._evaluated, self._description, self._clock = evaluated, dict(description), clock
        self._writer = writer
        self._buffers: dict[str, Tensor] = {}
        self._buffers_free = Event()
        self._buffers_free.set()
        self._disk: Thread | None = None
        """Writes a checkpoint."""
        self._error: str | None = None
        self._last_step, self._last_time = 0, clock()
        self._late = False
        self._snapshots, self._pace = snapshots, pace
        self._recoverable_step = 0
        """Where a run that crashes now continues: the step of the newest whole snapshot, or of its start."""
        self._snapshot_failed = False
        self._unsaved = False

    def start_at(self, step: int) -> None:
        """Count from `step`, whose state needs no more saving."""
        self._recoverable_step = step
        self._count_from(step)

    def _count_from(self, step: int) -> None:
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
        if due and self._disk is not None and self._disk.is_alive():
            if not self._late:
                say("warning", text=f"checkpoint of step {step} is late: the one before is still being written")
                self._late = True
            return False
        due &= self._buffers_free.is_set()
        if due:
            # All ranks will agree on it one step later; until then it must not be due again.
            self._count_from(step)
            self._late = self._unsaved = False
        return due

    def is_snapshot_due(self, step: int, *, window_ends: bool) -> bool:
        """Return whether to take a snapshot after `step` steps; not while an earlier one is being written."""
        if self._pace is None or not self._buffers_free.is_set():
            return False
        return self._pace.is_due(step, window_ends=window_ends)

    def bound_repetition(self, step: int) -> None:
        """Wait for the snapshot that is being written if a crash after `step` steps would repeat too many of them."""
        limit = None if self._pace is None or self._snapshot_failed else self._pace.most_repeated
        if limit is not None and step - self._recoverable_step > limit:
            self.wait_for_snapshot()

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        content: Mapping[str, Any],
        *,
        weights: Collection[str] = (),
        sync: Callable[[], None],
        is_snapshot: bool = True,
    ) -> None:
        """Copy the state and start to write it; wait only if the checkpoint before is still being written.

        Args:
            step: optimizer steps since the run's beginning.
            weights: names of the weight files to write from the same copy, without their suffix.
            sync: brings the records to the disk, before a checkpoint that counts their steps is valid.
            is_snapshot: the state also becomes a snapshot; its records must outlive this process already.
        """
        self.wait()
        self._copy(tensors)
        # The thread clears it on success: an unexpected error ends the thread silently.
        self._error = "its writer died (its traceback is above)"
        self._count_from(step)
        self._disk = self._start("checkpoint", self._write, step, dict(content), tuple(weights), sync, is_snapshot)

    def snapshot(
        self, step: int, tensors: Mapping[str, Tensor], content: Mapping[str, Any], *, began: float | None = None
    ) -> None:
        """Copy the state and start to write it to the memory for snapshots, also while a checkpoint is being written.

        Args:
            began: when the loop began to wait for it, on this saver's clock; the default is now.
        """
        began = self._clock() if began is None else began
        self.wait_for_snapshot()
        self._copy(tensors)
        self._start("snapshot", self._take_snapshot, step, dict(content), self._clock() - began)

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
        if self._disk is not None:
            self._disk.join()
            self._disk = None
        self.wait_for_snapshot()
        error, self._error = self._error, None
        return error

    def wait_for_snapshot(self) -> None:
        """Wait until the last snapshot is whole, or has failed.

        If a checkpoint's own snapshot has failed, wait until the checkpoint is on the disk: the buffers are its source.
        """
        self._buffers_free.wait()

    def close(self, *, timeout_s: float) -> None:
        """Give a checkpoint that is being written some time to reach the disk, before the process ends."""
        if self._disk is not None:
            self._disk.join(timeout=timeout_s)
        self._buffers_free.wait(timeout_s)

    def _start(self, name: str, target: Callable[..., None], *arguments: object) -> Thread:
        """Start a thread that reads the buffers, and frees them when it needs them no more."""
        thread = Thread(target=target, args=arguments, name=name, daemon=True)
        self._buffers_free.clear()
        try:
            thread.start()
        except RuntimeError:  # the system has no more threads
            self._buffers_free.set()
            raise
        return thread

    @torch.no_grad()
    def _copy(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy into buffers that stay: allocating a gigabyte each time takes longer than copying it."""
        for name, tensor in tensors.items():
            if name not in self._buffers:
                self._buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self._pin)
            self._buffers[name].copy_(tensor)

    def _write(
        self,
        step: int,
        content: dict[str, Any],
        weights: tuple[str, ...],
        sync: Callable[[], None],
        is_snapshot: bool,
    ) -> None:
        state = self._buffers
        try:
            snapshot = self._write_snapshot(step, content) if is_snapshot else None
            if snapshot is not None:
                # Mapped: the file's memory stays until the checkpoint is written, even if the snapshot is deleted.
                state = load_file(snapshot / STATE_FILE)
                self._buffers_free.set()
            sync()
            started_at = self._clock()
            # Before the checkpoint that counts them: a run that is killed in between writes them again.
            self._write_weights(state, weights)
            manifest = write_checkpoint(self._folder, step, _blobs(state), content, writer=self._writer)
            say("checkpoint", step=step, mib=manifest.bytes / 2**20, write_s=self._clock() - started_at)
            self._error = None
        except (OSError, BadCheckpointError, TrainerError) as error:
            self._error = " ".join(str(error).split())
            say("warning", text=f"checkpoint of step {step} is not saved: {self._error}; earlier ones stay")
            return
        finally:
            # Else they are free already, or the next snapshot is being written from them.
            if state is self._buffers:
                self._buffers_free.set()
        try:
            prune_checkpoints(self._folder, keep=self._keep, spare=[manifest.path], writer=self._writer)
        except (OSError, TrainerError) as error:
            say("warning", text=f"{self._folder}: older checkpoints cannot be deleted: {error}")

    def _take_snapshot(self, step: int, content: dict[str, Any], blocked_s: float) -> None:
        """Write a snapshot, for which the loop was blocked for `blocked_s`, and count its cost."""
        try:
            if self._write_snapshot(step, content) is not None and self._pace is not None:
                self._pace.count(blocked_s=blocked_s, processor_s=time.thread_time())
        finally:
            self._buffers_free.set()

    def _write_snapshot(self, step: int, content: dict[str, Any]) -> Path | None:
        """Write the buffers to memory. Return the snapshot; None if there is no memory for it."""
        if self._snapshots is None:
            return None
        try:
            snapshot = write_snapshot(self._snapshots, step, _blobs(self._buffers), content).path
        except (OSError, BadCheckpointError) as error:
            if not self._snapshot_failed:
                say("warning", text=f"{self._snapshots}: {error}; the snapshot of step {step} is left out")
            self._snapshot_failed = True
            return None
        self._snapshot_failed, self._recoverable_step = False, step
        return snapshot

    def _write_weights(self, state: Mapping[str, Tensor], names: Collection[str]) -> None:
        """Write the evaluated model's weights to files."""
        part = self._evaluated
        own = {name.removeprefix(part): tensor for name, tensor in state.items() if name.startswith(part)}
        for path in (self._folder / f"{name}.safetensors" for name in names):
            with scratch_folder(self._folder, self._writer) as scratch:
                write_weights(path, own, self._description, partial=scratch / path.name)


def _blobs(state: Mapping[str, Tensor]) -> dict[str, Blob]:
    return {name: _blob(tensor) for name, tensor in state.items()}


def _blob(tensor: Tensor) -> Blob:
    data = tensor.reshape(-1).view(torch.uint8).numpy().data
    return Blob(DTYPES[tensor.dtype], tuple(tensor.shape), data)
