"""Write checkpoint folders: a name `step-000000123` belongs to a checkpoint only once its bytes were read back.

A run may be killed, or its disk fill up, between any two instructions here. A folder under such a name is always whole,
and never fewer of them are left than before. Names that begin with a dot are leftovers, which the next call clears.

A process can also be frozen there, and wake up when another one owns the run. So each checkpoint enters and leaves the
folder by one rename, from or to a scratch folder of the attempt, and the next owner first removes this folder: the
rename of a process that wakes up then fails. No clock is needed.
"""

import contextlib
import dataclasses
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from trainer.checkpoint.manifest import (
    BAD,
    GOOD,
    MANIFEST_FILE,
    STATE_FILE,
    BadCheckpointError,
    Blob,
    CheckpointManifest,
    TensorEntry,
    encode_manifest,
    file_order,
    state_header,
)
from trainer.checkpoint.reading import CHUNK_BYTES, list_checkpoints, read_manifest, step_of, verify_checkpoint
from trainer.shared.files import fsync

# Earlier versions had no scratch folder, and left partial and pruned ones next to the others.
_LEFTOVER = re.compile(r"\.step-([0-9]{9,})(?:\.replaced)?\.(partial|refused|pruned)")
_SCRATCH = ".writing-"
# A process that wakes up can put a file into a folder that is being removed.
_REMOVALS = 100


@dataclasses.dataclass(frozen=True)
class CheckpointWriter:
    """The process that writes.

    Attributes:
        attempt: of its run; names its scratch folder.
        prove: raises a TrainerError if the folder belongs to another process by now.
    """

    attempt: int = 1
    prove: Callable[[], None] = lambda: None


UNSHARED = CheckpointWriter()
"""The writer of a folder that no other process can take."""


@contextlib.contextmanager
def scratch_folder(folder: Path, writer: CheckpointWriter) -> Iterator[Path]:
    """Yield a folder in `folder`, which is made if it is missing, for files that are not whole; remove it afterwards.

    Raises:
        OSError: the disk is full or the folder cannot be written.
        TrainerError: the folder belongs to another process by now.
    """
    if not folder.is_dir():
        folder.mkdir()
        fsync(folder.parent)
    scratch = folder / f"{_SCRATCH}{writer.attempt}"
    _remove(scratch)
    scratch.mkdir()
    try:
        # After the folder was made: a later owner finds and removes it.
        writer.prove()
        yield scratch
    finally:
        # A full disk needs the room.
        shutil.rmtree(scratch, ignore_errors=True)


def write_checkpoint(
    folder: Path,
    step: int,
    blobs: Mapping[str, Blob],
    content: Mapping[str, Any],
    *,
    writer: CheckpointWriter = UNSHARED,
    read_back: bool = True,
) -> CheckpointManifest:
    """Write the checkpoint of `step` into `folder`, which is made if it is missing, and verify it from the disk.

    It never holds the interpreter for more than some milliseconds: the tensors go to the file one by one, in chunks. An
    existing checkpoint of the same step is replaced once the new one is verified.

    Args:
        step: optimizer steps since the run's beginning.
        content: what to store apart from the tensors: JSON values.
        read_back: verify every byte on the disk; without it, a later reader does so.

    Returns:
        The manifest as it was read back.

    Raises:
        OSError: the disk is full or the folder cannot be written; all earlier checkpoints are still there.
        BadCheckpointError: the disk returned other bytes than were written; they stay in `.step-....refused`.
        TrainerError: the folder belongs to another process by now.
        ValueError: the size of a blob does not match its type and shape.
    """
    final = folder / f"step-{step:09d}"
    with scratch_folder(folder, writer) as scratch:
        partial = scratch / final.name
        partial.mkdir()
        entries = _write_state(partial / STATE_FILE, blobs, writer)
        saved = datetime.now(timezone.utc).isoformat(timespec="seconds")
        _write_file(partial / MANIFEST_FILE, iter([encode_manifest(content, entries, saved)]), writer)
        fsync(partial)
        manifest = _read_back(partial, folder / f".{final.name}.refused") if read_back else read_manifest(partial)
        writer.prove()
        _install(partial, final)
    return dataclasses.replace(manifest, path=final)


def clear_leftovers(folder: Path) -> None:
    """Delete what earlier writers have left half written. No writer of this attempt may be at work.

    An earlier owner that wakes up finds no scratch folder and no half-done replacement, so it can change no checkpoint.

    Raises:
        OSError: a leftover cannot be deleted.
    """
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if _LEFTOVER.fullmatch(path.name) or path.name.startswith(_SCRATCH):
            _remove(path)
    for path in list_checkpoints(folder):
        if path.suffix and not path.with_suffix("").exists():
            path.rename(path.with_suffix(""))


def prune_checkpoints(
    folder: Path, *, keep: int, spare: Collection[Path] = (), writer: CheckpointWriter = UNSHARED
) -> None:
    """Delete all but the newest `keep` checkpoints, and the leftovers of killed writers and prunes.

    Checkpoints of a training that is about to fail push no others out: bad ones do not count, and the newest good one
    always stays. The newest of all stays too.

    Args:
        keep: at least 1. Damaged checkpoints count too.
        spare: never deleted. A run that rolled back past damaged checkpoints writes one of a smaller step than theirs,
            and spares it.

    Raises:
        OSError: a checkpoint cannot be deleted.
        TrainerError: the folder belongs to another process by now.
    """
    if keep < 1:
        raise ValueError("keep is at least 1")
    by_step: dict[int | None, Path] = {}
    for path in list_checkpoints(folder):
        by_step.setdefault(step_of(path), path)
    paths = list(by_step.values())
    health = {path: _health(path) for path in paths}
    counted = [path for path in paths if health[path] != BAD]
    good = [path for path in paths if health[path] == GOOD]
    remaining = {*paths[:1], *counted[:keep], *good[:1], *spare}
    delete_checkpoints(folder, [path for path in list_checkpoints(folder) if path not in remaining], writer=writer)
    newest = max((step for step in by_step if step is not None), default=-1)
    for path in list(folder.iterdir()) if by_step else []:
        leftover = _LEFTOVER.fullmatch(path.name)
        if leftover and (leftover[2] == "pruned" or int(leftover[1]) <= newest):
            _remove(path)


def set_newer_aside(folder: Path, chosen: Path, *, attempt: int) -> list[Path]:
    """Move the checkpoints newer than `chosen` out of the way of those to come; return their old paths.

    Raises:
        OSError: one cannot be moved.
    """
    first = step_of(chosen) or 0
    newer = [path for path in list_checkpoints(folder) if path != chosen and (step_of(path) or 0) >= first]
    aside = folder / f"set-aside-{attempt}"
    for path in newer:
        aside.mkdir(exist_ok=True)
        # A run that rolls back can set the same step aside again.
        _remove(aside / path.name)
        path.rename(aside / path.name)
    return newer


def delete_checkpoints(folder: Path, paths: Collection[Path], *, writer: CheckpointWriter = UNSHARED) -> None:
    """Delete these checkpoints of `folder`.

    Raises:
        OSError: one cannot be deleted.
        TrainerError: the folder belongs to another process by now.
    """
    if paths:
        with scratch_folder(folder, writer) as scratch:
            for path in paths:
                _discard(path, scratch)


def _health(path: Path) -> str | None:
    """Return the health of a checkpoint; None if it is damaged."""
    try:
        return read_manifest(path).health
    except BadCheckpointError:
        return None


def _write_state(path: Path, blobs: Mapping[str, Blob], writer: CheckpointWriter) -> dict[str, TensorEntry]:
    entries: dict[str, TensorEntry] = {}

    def pieces() -> Iterator[bytes | memoryview]:
        yield state_header(blobs)
        for name in file_order(blobs):
            blob = blobs[name]
            # An empty view cannot be cast.
            data = blob.data.cast("B") if blob.data.nbytes else memoryview(b"")
            if len(data) != blob.size:
                raise ValueError(f"tensor {name}: {len(data)} bytes, but {blob.dtype} {blob.shape} has {blob.size}")
            digest = hashlib.sha256()
            for begin in range(0, len(data), CHUNK_BYTES):
                piece = data[begin : begin + CHUNK_BYTES]
                digest.update(piece)
                yield piece
            entries[name] = TensorEntry(blob.dtype, blob.shape, digest.hexdigest())

    _write_file(path, pieces(), writer)
    return entries


def _write_file(path: Path, pieces: Iterator[bytes | memoryview], writer: CheckpointWriter) -> None:
    with path.open("xb") as file:
        for piece in pieces:
            writer.prove()
            file.write(piece)
    fsync(path)


def _read_back(partial: Path, aside: Path) -> CheckpointManifest:
    """Verify the bytes on the disk, not those in the page cache, and set a wrong checkpoint aside.

    Raises:
        BadCheckpointError: the disk has other bytes.
    """
    for name in (STATE_FILE, MANIFEST_FILE):
        _forget(partial / name)
    try:
        return verify_checkpoint(partial)
    except BadCheckpointError as reason:
        _remove(aside)
        partial.rename(aside)
        raise BadCheckpointError(f"read back from the disk: {reason}; set aside as {aside}") from None


def _install(partial: Path, final: Path) -> None:
    """Give a verified checkpoint its name; at every moment it or the one it replaces is listed."""
    aside = final.with_name(f"{final.name}.replaced")
    if aside.exists() and final.exists():
        _discard(aside, partial.parent)
    if final.exists():
        partial.rename(aside)
        _discard(final, partial.parent)
        aside.rename(final)
    else:
        partial.rename(final)
    fsync(final.parent)
    if aside.exists():
        # The new one is in place: the next prune can delete the old one.
        with contextlib.suppress(OSError):
            _discard(aside, partial.parent)


def _discard(path: Path, scratch: Path) -> None:
    """Delete a listed checkpoint. It loses its name first, so that no reader sees it half deleted."""
    hidden = scratch / f"{path.name}.pruned"
    path.rename(hidden)
    _remove(hidden)


def _remove(path: Path) -> None:
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    for _ in range(_REMOVALS):
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
    shutil.rmtree(path)


def _forget(path: Path) -> None:
    """Drop a file's clean pages from the page cache."""
    if sys.platform == "linux":
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
