"""Checkpoint folders: a name `step-000000123` belongs to a checkpoint only once its bytes were read back from the disk.

A run may be killed, or its disk fill up, between any two instructions here; what then stands under such a name is
whole, and there is never less of it than before. Names that begin with a dot are leftovers, which the next call clears.
"""

import contextlib
import dataclasses
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from trainer.checkpoint.layout import file_order, header, size_of
from trainer.checkpoint.manifest import MANIFEST_FILE, STATE_FILE, BadCheckpointError, Entry, Manifest, encode
from trainer.checkpoint.reading import CHUNK, read_manifest, verify
from trainer.shared.files import fsync

__all__ = [
    "BadCheckpointError",
    "Blob",
    "Entry",
    "Manifest",
    "clear",
    "listed",
    "newest_valid",
    "prune",
    "read_manifest",
    "verify",
    "write",
]

CHECKPOINTS = "checkpoints"
"""The folder of a run's checkpoints in the run's own."""
# A checkpoint that a new one of the same step takes the place of keeps a name that is listed until that one is there.
NAMED = re.compile(r"step-([0-9]{9,})(\.replaced)?")
LEFTOVER = re.compile(r"\.step-([0-9]{9,})(?:\.replaced)?\.(partial|refused|pruned)")


@dataclass(frozen=True)
class Blob:
    """A tensor's bytes.

    Attributes:
        dtype: safetensors' name of the type, such as BF16.
        shape: empty for a scalar.
        data: C-contiguous and little-endian; it must not change while it is being written.
    """

    dtype: str
    shape: tuple[int, ...]
    data: memoryview


def write(folder: Path, step: int, blobs: Mapping[str, Blob], content: Mapping[str, Any]) -> Manifest:
    """Write the checkpoint of `step` into `folder`, which is made if need be, and verify it from the disk.

    It lets other threads run but for some milliseconds: the tensors go to the file one by one, in chunks. A checkpoint
    of the same step that is there already is replaced once the new one is verified.

    Args:
        step: optimizer steps since the run's beginning.
        content: what else to keep: JSON values.

    Returns:
        The manifest as it was read back.

    Raises:
        OSError: the disk is full or the folder cannot be written; all that was there before still is.
        BadCheckpointError: the disk gave back other bytes than were written; they stay in `.step-....refused`.
        ValueError: a blob has not the bytes of its type and shape.
    """
    data = {name: _bytes(name, blob) for name, blob in blobs.items()}
    if not folder.is_dir():
        folder.mkdir()
        fsync(folder.parent)
    final = folder / f"step-{step:09d}"
    partial = folder / f".{final.name}.partial"
    _remove(partial)
    with contextlib.ExitStack() as undo:
        # A disk that is full needs the room.
        undo.callback(shutil.rmtree, partial, ignore_errors=True)
        partial.mkdir()
        entries = _write_state(partial / STATE_FILE, blobs, data)
        saved = datetime.now(timezone.utc).isoformat(timespec="seconds")
        _write_file(partial / MANIFEST_FILE, iter([encode(content, entries, saved)]))
        fsync(partial)
        manifest = _read_back(partial)
        _install(partial, final)
        undo.pop_all()
    return dataclasses.replace(manifest, path=final)


def listed(folder: Path) -> list[Path]:
    """The checkpoints in `folder` by their names alone, newest first; none if there is no folder."""
    if not folder.is_dir():
        return []
    found = [(step, path) for path in folder.iterdir() if (step := _step(path)) is not None]
    return [path for _, path in sorted(found, key=lambda item: (-item[0], item[1].name))]


def newest_valid(folder: Path, *, on_refused: Callable[[Path, str], None]) -> Manifest | None:
    """The newest checkpoint in `folder` whose every byte is right.

    Args:
        on_refused: told the path and the reason of each newer one that is not, newest first.
    """
    return next(filter(None, (_verified(path, on_refused) for path in listed(folder))), None)


def clear(folder: Path) -> None:
    """Delete what writers that were killed have left half written: its room is needed. No writer may be at work.

    Raises:
        OSError: something cannot be deleted.
    """
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if LEFTOVER.fullmatch(path.name):
            _remove(path)


def prune(folder: Path, *, keep: int, spare: Collection[Path] = ()) -> None:
    """Delete all but the newest `keep` checkpoints, and the leftovers of writers and prunes that were killed.

    Args:
        keep: at least 1. Checkpoints are counted by their names: damaged ones count too.
        spare: never deleted. A run that went back behind damaged checkpoints needs it for the one it has just written,
            whose step is smaller than theirs.

    Raises:
        OSError: something cannot be deleted.
    """
    if keep < 1:
        raise ValueError("at least one checkpoint is kept")
    by_step: dict[int | None, Path] = {}
    for path in listed(folder):
        by_step.setdefault(_step(path), path)
    kept = {*list(by_step.values())[:keep], *spare}
    for path in listed(folder):
        if path not in kept:
            _discard(path)
    newest = max((step for step in by_step if step is not None), default=-1)
    for path in list(folder.iterdir()) if by_step else []:
        leftover = LEFTOVER.fullmatch(path.name)
        if leftover and (leftover[2] == "pruned" or int(leftover[1]) <= newest):
            _remove(path)


def _step(path: Path) -> int | None:
    named = NAMED.fullmatch(path.name)
    return int(named[1]) if named and named[1] == f"{int(named[1]):09d}" else None


def _verified(path: Path, on_refused: Callable[[Path, str], None]) -> Manifest | None:
    try:
        return verify(path)
    except BadCheckpointError as reason:
        on_refused(path, str(reason))
        return None


def _bytes(name: str, blob: Blob) -> memoryview:
    # An empty view cannot be cast.
    data = blob.data.cast("B") if blob.data.nbytes else memoryview(b"")
    if len(data) != size_of(blob):
        raise ValueError(f"tensor {name}: {len(data)} bytes, but {blob.dtype} {blob.shape} has {size_of(blob)}")
    return data


def _write_state(path: Path, blobs: Mapping[str, Blob], data: Mapping[str, memoryview]) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}

    def pieces() -> Iterator[bytes | memoryview]:
        yield header(blobs)
        for name in file_order(blobs):
            digest = hashlib.sha256()
            for begin in range(0, len(data[name]), CHUNK):
                piece = data[name][begin : begin + CHUNK]
                digest.update(piece)
                yield piece
            entries[name] = Entry(blobs[name].dtype, blobs[name].shape, digest.hexdigest())

    _write_file(path, pieces())
    return entries


def _write_file(path: Path, pieces: Iterator[bytes | memoryview]) -> None:
    with path.open("xb") as file:
        for piece in pieces:
            file.write(piece)
    fsync(path)


def _read_back(partial: Path) -> Manifest:
    """Verify what the disk has, not what the page cache remembers; what is wrong is set aside.

    Raises:
        BadCheckpointError: the disk has something else.
    """
    for name in (STATE_FILE, MANIFEST_FILE):
        _forget(partial / name)
    try:
        return verify(partial)
    except BadCheckpointError as reason:
        aside = partial.with_suffix(".refused")
        _remove(aside)
        partial.rename(aside)
        raise BadCheckpointError(f"read back from the disk: {reason}; set aside as {aside}") from None


def _install(partial: Path, final: Path) -> None:
    """Give a verified checkpoint its name; one of the two has a listed name at every moment."""
    aside = final.with_name(f"{final.name}.replaced")
    if final.exists():
        if aside.exists():
            _discard(aside)
        final.rename(aside)
    partial.rename(final)
    fsync(final.parent)
    if aside.exists():
        # The new one is in place: what is left of the old one can wait for the next prune.
        with contextlib.suppress(OSError):
            _discard(aside)


def _discard(path: Path) -> None:
    """Delete a listed checkpoint: it loses its name at once, so that none is ever seen half deleted."""
    hidden = path.with_name(f".{path.name}.pruned")
    _remove(hidden)
    path.rename(hidden)
    _remove(hidden)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _forget(path: Path) -> None:
    """Drop a file's clean pages from the page cache."""
    if sys.platform == "linux":
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
