"""The snapshots of a run as the process that starts its workers sees them: it owns their memory, and outlives workers.

After a crash the newest whole one is what the next workers continue from; they write it to the disk while they train.
If no further workers start, this process writes it.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from trainer.checkpoint.manifest import BadCheckpointError, CheckpointManifest
from trainer.checkpoint.reading import list_checkpoints, step_of
from trainer.checkpoint.snapshot import (
    NO_SNAPSHOTS,
    SHARED_MEMORY,
    SnapshotOrigin,
    code_hash,
    save_snapshot,
    snapshot_folder,
    valid_snapshots,
)
from trainer.checkpoint.writing import CheckpointWriter, clear_leftovers
from trainer.records.files import OnNote
from trainer.shared.config import TrainConfig
from trainer.shared.config.train import parse_snapshot_every
from trainer.shared.errors import TrainerError
from trainer.shared.files import fsync
from trainer.shared.runs import CHECKPOINTS_FOLDER, TRAINING


@contextlib.contextmanager
def hold_memory(config: TrainConfig, on_note: OnNote) -> Iterator[Path | None]:
    """Yield the folder for snapshots in this machine's memory, or None for a run without them."""
    with contextlib.ExitStack() as stack:
        folder = None
        if config.mode in TRAINING and parse_snapshot_every(config.snapshot_every)[0]:
            code_hash()  # before anyone changes the files: the workers are from the same ones
            try:
                folder = stack.enter_context(snapshot_folder())
            except OSError as error:
                on_note(f"{NO_SNAPSHOTS}: {SHARED_MEMORY}: {error.strerror}")
        yield folder


def usable_snapshots(memory: Path | None, run: Path, *, world_size: int, on_note: OnNote) -> list[CheckpointManifest]:
    """Return the snapshots of this run whose every byte is right, newest first. No worker may be at work."""
    if memory is None:
        return []
    try:
        clear_leftovers(memory)
    except OSError as error:
        on_note(f"snapshots: {error}")
    origin = SnapshotOrigin(run.name, world_size, code_hash())
    return valid_snapshots(
        memory, origin, on_refused=lambda path, reason: on_note(f"snapshot {path.name} refused: {reason}")
    )


def newest_step(folder: Path) -> int:
    """Return the step of the newest checkpoint or snapshot in a folder, by its name; -1 for an empty folder."""
    return max((step_of(path) or 0 for path in list_checkpoints(folder)), default=-1)


def save_newest_snapshot(
    memory: Path | None, run: Path, *, world_size: int, writer: CheckpointWriter, on_note: OnNote
) -> None:
    """Write the newest snapshot to the disk if it is newer than all checkpoints there. No worker may be at work."""
    folder = run / CHECKPOINTS_FOLDER
    try:
        saved_step = newest_step(folder)
        if memory is None or newest_step(memory) <= saved_step:
            return
        snapshots = usable_snapshots(memory, run, world_size=world_size, on_note=on_note)
        if not snapshots or (step_of(snapshots[0].path) or 0) <= saved_step:
            return
        _sync_records(run)
        saved = save_snapshot(snapshots[0], folder, writer=writer)
    except (OSError, BadCheckpointError, TrainerError) as error:
        on_note(f"the last snapshot cannot be saved: {error}; resume continues from the checkpoint before")
    else:
        on_note(f"saved the last snapshot as {saved.path}")


def _sync_records(run: Path) -> None:
    """Bring the records to the disk, before a checkpoint that counts their steps is valid."""
    for path in run.rglob("*"):
        if path.is_file() and CHECKPOINTS_FOLDER not in path.relative_to(run).parts:
            fsync(path)
