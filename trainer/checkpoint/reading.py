"""Find and read checkpoints: each is what its manifest says, byte for byte, or there is one plain reason to refuse it.

Nothing is repaired, guessed or changed on disk, and torch is not needed.
"""

import contextlib
import errno
import hashlib
import json
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from trainer.checkpoint.manifest import (
    MANIFEST_FILE,
    STATE_FILE,
    BadCheckpointError,
    CheckpointManifest,
    TensorSpec,
    decode_manifest,
    file_order,
    state_header,
)
from trainer.shared.errors import TrainerError, UsageError
from trainer.shared.files import AGAIN, NOT_REGULAR, PASSING, reading
from trainer.shared.runs import CHECKPOINTS_FOLDER

CHECKPOINT_PREFIX = "step-"
# A checkpoint that takes the place of another one of its step is listed as `.replaced` until that one is gone.
_NAME = re.compile(r"step-([0-9]{9,})(\.replaced)?")
WEIGHTS_SUFFIX = ".safetensors"
CHUNK_BYTES = 4 << 20
"""hashlib and files let other threads run while they work on a chunk; smaller ones would switch threads often."""
# The header of the large network's weights has 0.2 MB; a longer length belongs to no header.
LONGEST_HEADER = 100 << 20
_WAITS_S = (0.0, 0.5, 1.0, 2.0)
"""Pauses before each look at a checkpoint that cannot be read for a moment."""


class UnreadableNowError(BadCheckpointError):
    """A checkpoint could not be read, and nothing is known of its bytes: they may all be right."""


@dataclass(frozen=True)
class TensorInfo(TensorSpec):
    """One tensor of a file.

    Attributes:
        bytes: of its data.
        valid: whether its bytes have their hash; None if this was not checked, or there is no hash.
    """

    bytes: int
    valid: bool | None


@dataclass(frozen=True)
class Inspection:
    """The contents of a checkpoint or a weight file.

    Attributes:
        path: the checkpoint's folder, or the weight file.
        refused: why it must not be used; None if every possible check passed.
        saved: when it was written; None if unknown.
        content: what it says about itself.
        tensors: by name, in the file's order; empty if its table cannot be read.
        bytes: on disk.
        is_safetensors: whether it begins as a file of this format does; a checkpoint's state always has it.
    """

    path: Path
    refused: str | None
    saved: str | None
    content: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    bytes: int
    is_safetensors: bool = True


def step_of(path: Path) -> int | None:
    """Return the step in a checkpoint's name; None if it is not the name of a checkpoint."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match and match[1] == f"{int(match[1]):09d}" else None


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, by their names only, newest first; empty if there is no folder."""
    if not folder.is_dir():
        return []
    steps = [(step, path) for path in folder.iterdir() if (step := step_of(path)) is not None]
    return [path for _, path in sorted(steps, key=lambda item: (-item[0], item[1].name))]


def newest_valid(
    folder: Path,
    *,
    on_refused: Callable[[Path, str], None],
    accept: Callable[[CheckpointManifest], None] | None = None,
) -> CheckpointManifest | None:
    """Return the newest checkpoint in `folder` whose every byte is right.

    Args:
        on_refused: called with path and reason for each newer checkpoint that is not valid, newest first.
        accept: raises a BadCheckpointError for a checkpoint that is valid, and still not wanted.

    Raises:
        TrainerError: the file server does not let a checkpoint be read now.
    """
    for path in list_checkpoints(folder):
        try:
            return verify_when_readable(path, accept)
        except BadCheckpointError as reason:  # noqa: PERF203  # each checkpoint is refused by itself
            on_refused(path, str(reason))
    return None


def verify_when_readable(path: Path, accept: Callable[[CheckpointManifest], None] | None = None) -> CheckpointManifest:
    """Return the manifest of a checkpoint whose every byte is right; look again if it cannot be read for a moment.

    Args:
        accept: raises a BadCheckpointError for a checkpoint that is not wanted.

    Raises:
        BadCheckpointError: the first fault.
        TrainerError: it still cannot be read.
    """
    for wait_s in _WAITS_S:
        time.sleep(wait_s)
        try:
            if accept is not None:
                accept(read_manifest(path))
            return verify_checkpoint(path)
        except UnreadableNowError as error:
            reason = error
    raise TrainerError(f"{path}: {reason}; nothing was changed: {AGAIN}") from reason


def find_checkpoints(path: Path) -> list[Path]:
    """Return the checkpoints that `path` means, newest first: itself, or all of a run or of its checkpoints folder.

    Raises:
        UsageError: `path` does not exist, or is a folder without checkpoints; the line says what it holds instead.
    """
    with reading(path):
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder; give a checkpoint, a run's folder or a weight file")
        if not (path.is_file() or path.is_dir()):
            raise UsageError(f"{path}: {NOT_REGULAR}; give a checkpoint, a run's folder or a weight file")
        if path.name in (MANIFEST_FILE, STATE_FILE):
            return [path.parent]
        if path.is_file() or (path / MANIFEST_FILE).exists() or (path / STATE_FILE).exists():
            return [path]
        checkpoints = list_checkpoints(path) or list_checkpoints(path / CHECKPOINTS_FOLDER)
        if not checkpoints and path.name.startswith(CHECKPOINT_PREFIX):
            return [path]
        if not checkpoints:
            raise UsageError(f"{path}: {_without_checkpoints(path)}")
        return checkpoints


def verify_checkpoint(path: Path) -> CheckpointManifest:
    """Return the manifest of the checkpoint folder `path` after a check of every byte of both files.

    Raises:
        BadCheckpointError: the first fault.
    """
    manifest = read_manifest(path)
    for name, valid in check_tensors(manifest):
        if not valid:
            raise BadCheckpointError(f"tensor {name}: wrong sha256")
    return manifest


def read_manifest(path: Path) -> CheckpointManifest:
    """Return the manifest and check its hash, without a look at the tensors.

    Raises:
        BadCheckpointError: it is missing, unreadable, damaged or of another format.
    """
    with _refusing("it"):
        if not stat.S_ISDIR(path.stat().st_mode):
            raise BadCheckpointError("it is a file, not a folder")
    with _open(path / MANIFEST_FILE) as (file, _):
        return decode_manifest(path, file.read())


def check_tensors(manifest: CheckpointManifest) -> Iterator[tuple[str, bool]]:
    """Yield each tensor's name, in the file's order, and whether its bytes have their hash.

    Raises:
        BadCheckpointError: the state file is missing, unreadable, or of another size or header.
    """
    with _open(manifest.path / STATE_FILE) as (file, size):
        if size != manifest.bytes:
            raise BadCheckpointError(_wrong_size(STATE_FILE, size, manifest.bytes))
        expected = state_header(manifest.tensors)
        if file.read(len(expected)) != expected:
            raise BadCheckpointError(f"{STATE_FILE} is damaged (its header does not match the manifest)")
        buffer = memoryview(bytearray(CHUNK_BYTES))
        for name in file_order(manifest.tensors):
            entry = manifest.tensors[name]
            yield name, _hash(file, entry.size, buffer) == entry.sha256


def inspect_path(path: Path) -> Inspection:
    """Read a checkpoint's folder or a weight file, with every possible check; a fault is returned, not raised."""
    is_weights = path.is_file() and not path.name.startswith(CHECKPOINT_PREFIX)
    return _inspect_weights(path) if is_weights else _inspect_checkpoint(path)


def _without_checkpoints(folder: Path) -> str:
    """Return what a folder without checkpoints holds, and what the user can give instead."""
    entries = sorted(folder.iterdir())
    runs = [entry.name for entry in entries if list_checkpoints(entry / CHECKPOINTS_FOLDER)]
    if runs:
        return f"holds no checkpoint but {len(runs)} run(s): give one of them, such as {folder / runs[0]}"
    inside = folder / CHECKPOINTS_FOLDER if (folder / CHECKPOINTS_FOLDER).is_dir() else folder
    weights = [entry for entry in sorted(inside.iterdir()) if entry.suffix == WEIGHTS_SUFFIX]
    if weights:
        return f"holds no checkpoint yet, only weights: give one of the files, such as {weights[0]}"
    return "holds no checkpoint; give a checkpoint, a run's folder or a weight file"


def _inspect_checkpoint(path: Path) -> Inspection:
    size = sum(file.stat().st_size for name in (STATE_FILE, MANIFEST_FILE) if (file := path / name).is_file())
    try:
        manifest = read_manifest(path)
    except BadCheckpointError as reason:
        return Inspection(path, str(reason), None, {}, {}, size)
    checks: dict[str, bool] = {}
    refused = None
    try:
        checks.update(check_tensors(manifest))
    except BadCheckpointError as reason:
        refused = str(reason)
    wrong = [name for name, valid in checks.items() if not valid]
    if wrong:
        others = f" (and {len(wrong) - 1:,} more)" if len(wrong) > 1 else ""
        refused = f"tensor {wrong[0]}: wrong sha256{others}"
    tensors = {
        name: TensorInfo(entry.dtype, entry.shape, entry.size, checks.get(name))
        for name in file_order(manifest.tensors)
        for entry in [manifest.tensors[name]]
    }
    return Inspection(path, refused, manifest.saved, manifest.content, tensors, size)


def _inspect_weights(path: Path) -> Inspection:
    with reading(path):
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            begins_as_json = file.read(1) == b"{"
            file.seek(8)
            text = file.read(length) if length <= LONGEST_HEADER else b""
    try:
        table = json.loads(text)
        content = dict(table.pop("__metadata__", {}))
        entries = sorted(table.items(), key=lambda item: item[1]["data_offsets"][0])
        tensors = {name: _tensor_info(entry) for name, entry in entries}
        end = 8 + length + max((entry["data_offsets"][1] for entry in table.values()), default=0)
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError):
        reason = "its header is damaged, or it is not a safetensors file" if size else _wrong_size(path.name, 0, 0)
        return Inspection(path, reason, None, {}, {}, size, is_safetensors=begins_as_json)
    return Inspection(path, None if size == end else _wrong_size(path.name, size, end), None, content, tensors, size)


def _tensor_info(entry: Mapping[str, Any]) -> TensorInfo:
    begin, end = entry["data_offsets"]
    return TensorInfo(str(entry["dtype"]), tuple(map(int, entry["shape"])), end - begin, None)


def _wrong_size(name: str, size: int, expected: int) -> str:
    """Return the reason to refuse a file of `size` bytes."""
    if size == 0:
        return f"{name} is empty"
    fault = "the end is missing" if size < expected else "something was added"
    return f"{name} has {size} bytes, not {expected}: {fault}"


def _hash(file: BufferedReader, length: int, buffer: memoryview) -> str:
    """Return the SHA-256 of the next `length` bytes, or of fewer at the end of the file."""
    digest = hashlib.sha256()
    while length > 0:
        read = file.readinto(buffer[: min(length, len(buffer))])
        if not read:
            break
        digest.update(buffer[:read])
        length -= read
    return digest.hexdigest()


@contextlib.contextmanager
def _open(path: Path) -> Iterator[tuple[BufferedReader, int]]:
    """Yield a file and its size; only a regular file is opened, since opening a pipe could wait for ever."""
    with _refusing(path.name):
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadCheckpointError(f"{path.name} is not a file")
        with path.open("rb") as file:
            yield file, status.st_size


@contextlib.contextmanager
def _refusing(subject: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise BadCheckpointError(f"{subject} is missing") from None
    except OSError as error:
        # A bad block of a disk is EIO, too.
        if error.errno in PASSING and error.errno != errno.EIO:
            raise UnreadableNowError(f"{subject} cannot be read now: {error.strerror}") from None
        raise BadCheckpointError(f"{subject} cannot be read: {error.strerror or error}") from None
