"""What a path holds, as values: a training state or a weight file, with whatever is wrong told instead of raised.

Only where there is nothing to look at is an error raised. Nothing is changed, and torch is not needed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.checkpoint.files import CHECKPOINTS, listed
from trainer.checkpoint.layout import file_order, size_of
from trainer.checkpoint.manifest import MANIFEST_FILE, STATE_FILE, BadCheckpointError
from trainer.checkpoint.reading import read_manifest, tensor_checks, wrong_size
from trainer.shared.errors import UsageError
from trainer.shared.files import reading

WEIGHTS_SUFFIX = ".safetensors"
CHECKPOINT_PREFIX = "step-"
# The header of the large network's weights has 0.2 MB; a length beyond this is no header's.
LONGEST_HEADER = 100 << 20


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file.

    Attributes:
        dtype: safetensors' name of the type.
        shape: empty for a scalar.
        bytes: of its data.
        valid: whether its bytes have their hash; None if that was not found out, or there is no hash.
    """

    dtype: str
    shape: tuple[int, ...]
    bytes: int
    valid: bool | None


@dataclass(frozen=True)
class Examined:
    """A checkpoint or a weight file.

    Attributes:
        path: the checkpoint's folder, or the weight file.
        refused: why it must not be used; None if all that can be checked is right.
        saved: when it was written; None if it does not say.
        content: what it says about itself.
        tensors: by name, in the file's order; none if its table cannot be read.
        bytes: on disk.
    """

    path: Path
    refused: str | None
    saved: str | None
    content: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    bytes: int


def checkpoints_at(path: Path) -> list[Path]:
    """The checkpoints that `path` means, newest first: itself, or those of a run or of its checkpoints folder.

    Raises:
        UsageError: `path` is not there, or is a folder without checkpoints; the line says what it holds instead.
    """
    with reading(path):
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder; give a checkpoint, a run's folder or a weight file")
        if path.name in (MANIFEST_FILE, STATE_FILE):
            return [path.parent]
        if path.is_file() or (path / MANIFEST_FILE).exists() or (path / STATE_FILE).exists():
            return [path]
        found = listed(path) or listed(path / CHECKPOINTS)
        if not found and path.name.startswith(CHECKPOINT_PREFIX):
            return [path]
        if not found:
            raise UsageError(f"{path}: {_instead(path)}")
        return found


def examine(path: Path) -> Examined:
    """Read a checkpoint's folder or a weight file and check all that can be checked."""
    is_weights = path.is_file() and not path.name.startswith(CHECKPOINT_PREFIX)
    return _weights(path) if is_weights else _checkpoint(path)


def _instead(folder: Path) -> str:
    entries = sorted(folder.iterdir())
    runs = [entry.name for entry in entries if listed(entry / CHECKPOINTS)]
    if runs:
        return f"holds no checkpoint but {len(runs)} run(s): give one of them, such as {folder / runs[0]}"
    inside = folder / CHECKPOINTS if (folder / CHECKPOINTS).is_dir() else folder
    weights = [entry for entry in sorted(inside.iterdir()) if entry.suffix == WEIGHTS_SUFFIX]
    if weights:
        return f"holds no checkpoint yet, only weights: give one of the files, such as {weights[0]}"
    return "holds no checkpoint; give a checkpoint, a run's folder or a weight file"


def _checkpoint(path: Path) -> Examined:
    size = sum(file.stat().st_size for name in (STATE_FILE, MANIFEST_FILE) if (file := path / name).is_file())
    try:
        manifest = read_manifest(path)
    except BadCheckpointError as reason:
        return Examined(path, str(reason), None, {}, {}, size)
    checks: dict[str, bool] = {}
    refused = None
    try:
        checks.update(tensor_checks(manifest))
    except BadCheckpointError as reason:
        refused = str(reason)
    wrong = [name for name, valid in checks.items() if not valid]
    if wrong:
        others = f" (and {len(wrong) - 1:,} more)" if len(wrong) > 1 else ""
        refused = f"tensor {wrong[0]}: wrong sha256{others}"
    tensors = {
        name: Tensor(entry.dtype, entry.shape, size_of(entry), checks.get(name))
        for name, entry in ((name, manifest.tensors[name]) for name in file_order(manifest.tensors))
    }
    return Examined(path, refused, manifest.saved, manifest.content, tensors, size)


def _weights(path: Path) -> Examined:
    with reading(path):
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            text = file.read(length) if length <= LONGEST_HEADER else b""
    try:
        table = json.loads(text)
        content = dict(table.pop("__metadata__", {}))
        tensors = {name: _tensor(entry) for name, entry in _by_offset(table)}
        end = 8 + length + max((entry["data_offsets"][1] for entry in table.values()), default=0)
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError):
        reason = "its header is damaged or not that of a safetensors file" if size else wrong_size(path.name, 0, 0)
        return Examined(path, reason, None, {}, {}, size)
    return Examined(path, None if size == end else wrong_size(path.name, size, end), None, content, tensors, size)


def _by_offset(table: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted(table.items(), key=lambda item: item[1]["data_offsets"][0])


def _tensor(entry: Mapping[str, Any]) -> Tensor:
    begin, end = entry["data_offsets"]
    return Tensor(str(entry["dtype"]), tuple(map(int, entry["shape"])), end - begin, None)
