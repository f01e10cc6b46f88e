"""Snapshots: checkpoints whose files lie in memory, so that a crashed worker's run loses seconds and not minutes.

The process that starts the workers owns the folder, in /dev/shm, and outlives them. A snapshot is written by the same
functions as a checkpoint on disk and has the same two files: it has its name only once it is whole and hashed, and it
is verified before it is used. Two lie there, so that one is whole while the next is being written, and so that all pods
of a job have one in common: a pod deletes the older one only after every pod has finished the newer one.
"""

import contextlib
import fcntl
import hashlib
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import trainer
from trainer.checkpoint.manifest import (
    STATE_FILE,
    BadCheckpointError,
    Blob,
    CheckpointManifest,
    file_order,
    state_header,
)
from trainer.checkpoint.reading import CHUNK_BYTES, list_checkpoints, step_of, verify_checkpoint
from trainer.checkpoint.writing import UNSHARED, CheckpointWriter, delete_checkpoints, write_checkpoint
from trainer.shared.container import MORE_SHM, free_memory_bytes
from trainer.shared.durations import Interval

SHARED_MEMORY = Path("/dev/shm")
NO_SNAPSHOTS = "no snapshots, so that a crash costs the steps since the last checkpoint"
SLOTS = 2
_FILES = SLOTS + 1
"""In memory at the same time, at most: a slow disk can still be taking an older one as a checkpoint."""
SHM_SHARE = 0.5
"""The largest part of the free /dev/shm that snapshots take: loaders hand images over in the rest."""
MEMORY_SHARE = 0.5
"""The largest part of the free memory that the snapshots and the buffer from which they are written take."""
COST_SHARE = 0.01
"""The largest part of the time that snapshots cost, unless the user sets their interval."""
SHORTEST_S = 10.0
"""Seconds between snapshots, at least: a restart takes as long, so that more of them save little."""
STEPS_PER_WRITING_STEP = 4
"""Of the K steps that a crash can repeat at most, one in four is for writing: the next snapshot begins after the other
three. If it is not whole after K steps, the loop waits for it."""
_PREFIX = "pnas-snapshots-"
_OWNER = "owner"
CODE_FIELD = "code"
"""In the content of a checkpoint: the hash of the program that has written it."""


@dataclass(frozen=True)
class SnapshotOrigin:
    """What a snapshot must come from to be used: the run's name, its number of ranks, and this program's hash."""

    run: str
    world_size: int
    code: str

    def check(self, manifest: CheckpointManifest) -> None:
        """Raise a BadCheckpointError for a snapshot of another origin."""
        content = manifest.content
        run, world_size = content["run"]["name"], content["arithmetic"]["world_size"]
        if run != self.run:
            raise BadCheckpointError(f"it is a snapshot of the run {run}, not of {self.run}")
        if world_size != self.world_size:
            raise BadCheckpointError(f"it is a snapshot of {world_size} ranks, not of {self.world_size}")
        if content[CODE_FIELD] != self.code:
            raise BadCheckpointError(f"it is a snapshot of another version of this program ({content[CODE_FIELD]})")


@contextlib.contextmanager
def snapshot_folder(memory: Path = SHARED_MEMORY) -> Iterator[Path]:
    """Make a folder for the snapshots of one run, and delete it at the end. Delete what killed owners have left.

    The owner locks a file in it, which shows that it lives to other processes on this machine, in any container.

    Raises:
        OSError: `memory` cannot be written.
    """
    for path in list(memory.glob(f"{_PREFIX}*")):
        if _is_ownerless(path):
            shutil.rmtree(path, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=memory))
    try:
        new = folder / f".{_OWNER}"
        with new.open("xb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Only now others look at it.
            new.rename(folder / _OWNER)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def shortage(folder: Path, state_bytes: int) -> str | None:
    """Return why snapshots of a state of this size cannot lie in `folder`; None if they can."""
    size, mib = _FILES * state_bytes, 2**20
    # After a crash, snapshots lie there already, and later ones take their place.
    held = sum(file.stat().st_size for snapshot in list_checkpoints(folder) for file in snapshot.iterdir())
    room = os.statvfs(folder)
    free = held + room.f_bavail * room.f_frsize
    if size > SHM_SHARE * free:
        return (
            f"three of {state_bytes / mib:,.0f} MiB need {size / SHM_SHARE / mib:,.0f} MiB in {folder.parent}, "
            f"which has {free / mib:,.0f} free: {MORE_SHM}"
        )
    # With the buffer from which they are written.
    size, free = (_FILES + 1) * state_bytes, held + free_memory_bytes()
    if size > MEMORY_SHARE * free:
        return (
            f"they need {size / MEMORY_SHARE / mib:,.0f} MiB of free memory, and {free / mib:,.0f} are free: allow more"
        )
    return None


def write_snapshot(
    folder: Path, step: int, blobs: Mapping[str, Blob], content: Mapping[str, Any]
) -> CheckpointManifest:
    """Write the snapshot of `step`, after deleting all but the newest one; see `write_checkpoint` for the arguments.

    Raises:
        OSError: the memory is full; the newest earlier snapshot is still there.
    """
    delete_checkpoints(folder, list_checkpoints(folder)[SLOTS - 1 :])
    return write_checkpoint(folder, step, blobs, content, read_back=False)


def valid_snapshots(
    folder: Path, origin: SnapshotOrigin, *, on_refused: Callable[[Path, str], None]
) -> list[CheckpointManifest]:
    """Return the snapshots whose every byte is right and that come from `origin`, newest first.

    Args:
        on_refused: called with path and reason for each other one.
    """
    valid = []
    for path in list_checkpoints(folder):
        try:
            manifest = verify_checkpoint(path)
            origin.check(manifest)
        except BadCheckpointError as reason:  # noqa: PERF203  # each snapshot is refused by itself
            on_refused(path, str(reason))
        else:
            valid.append(manifest)
    return valid


def save_snapshot(
    snapshot: CheckpointManifest, folder: Path, *, writer: CheckpointWriter = UNSHARED
) -> CheckpointManifest:
    """Write a valid snapshot to the disk as the checkpoint that it is; see `write_checkpoint`.

    Raises:
        OSError: the disk is full or the folder cannot be written.
        BadCheckpointError: the disk returned other bytes than were written.
        TrainerError: the folder belongs to another process by now.
    """
    with (snapshot.path / STATE_FILE).open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    begin, blobs = len(state_header(snapshot.tensors)), {}
    for name in file_order(snapshot.tensors):
        entry = snapshot.tensors[name]
        blobs[name] = Blob(entry.dtype, entry.shape, data[begin : begin + entry.size])
        begin += entry.size
    return write_checkpoint(folder, step_of(snapshot.path) or 0, blobs, snapshot.content, writer=writer)


def drop_snapshots(folder: Path) -> None:
    """Delete all snapshots: the run goes back to a checkpoint from before them.

    Raises:
        OSError: one cannot be deleted.
    """
    delete_checkpoints(folder, list_checkpoints(folder))


class SnapshotPace:
    """When a snapshot is due: after a number of steps or of seconds, or as often as it costs little.

    The cost is the time for which the loop is blocked, and the writer's processor time: a loop on CPUs lacks it. It is
    divided by the number of processors, since on a host with many the writer takes one that would idle.
    """

    def __init__(self, every: Interval | None, *, processors: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`every` is None for a pace by the cost."""
        self._every, self._processors, self._clock = every, processors, clock
        self._last_step, self._last_time = 0, clock()
        self._cost_s = 0.0

    @property
    def most_repeated(self) -> int | None:
        """How many steps a crash repeats at most; None if the user has set no number of steps."""
        return None if self._every is None else self._every.steps

    def start_at(self, step: int) -> None:
        """Count from `step`, of which there is a snapshot or a checkpoint."""
        self._last_step, self._last_time = step, self._clock()

    def is_due(self, step: int, *, window_ends: bool) -> bool:
        """Return whether to take a snapshot after `step` steps.

        Args:
            window_ends: the figures of the steps are read then anyway; a pace by the cost waits for such a step.
        """
        passed_s = self._clock() - self._last_time
        if self._every is None:
            due = window_ends and passed_s >= max(SHORTEST_S, self._cost_s / COST_SHARE)
        elif self._every.steps is not None:
            interval = self._every.steps - self._every.steps // STEPS_PER_WRITING_STEP
            due = step // interval > self._last_step // interval
        else:
            due = passed_s >= (self._every.seconds or 0)
        if due:
            self.start_at(step)
        return due

    def count(self, *, blocked_s: float, processor_s: float) -> None:
        """Note what the last snapshot has cost."""
        self._cost_s = blocked_s + processor_s / self._processors


@cache
def code_hash() -> str:
    """Return a hash of the trainer's source files at the first call."""
    source = Path(trainer.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(source.rglob("*.py")):
        digest.update(f"{path.relative_to(source)}\0".encode())
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()[:16]


def _is_ownerless(folder: Path) -> bool:
    """Return whether the process that made the folder has ended; False if another user's process made it."""
    try:
        with (folder / _OWNER).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
