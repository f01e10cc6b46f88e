"""A checkpoint's two files, byte for byte: the manifest, which shows any change, and the layout of the state file.

The first line of `manifest.json` is `{"sha256":"...",` and holds the hash of all that follows it; the rest is compact
JSON and a newline. So the file is plain JSON, and no byte of it, not even a space, can change unseen.

The state file is in safetensors' format: 8 bytes with the header's length, little-endian; the header, JSON padded with
spaces to a multiple of 8; the tensors, little-endian, without gaps (https://github.com/huggingface/safetensors#format).
safetensors' own writer serialises all tensors in one piece, which stops the training loop. Here each tensor can go to
the file, and into its hash, by itself.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from trainer.shared.runs import CHECKPOINT_FORMAT

VERSION = 1
GOOD, DOUBTFUL, BAD = "good", "doubtful", "bad"
"""A checkpoint is bad if it was taken while steps were being left out, and doubtful while the loss was far too high."""
MANIFEST_FILE = "manifest.json"
STATE_FILE = "state.safetensors"

ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}


class BadCheckpointError(Exception):
    """A checkpoint must not be used; `str(error)` is the reason, without the path."""


@dataclass(frozen=True)
class TensorSpec:
    """A tensor's type and shape.

    Attributes:
        dtype: safetensors' name of the type, such as BF16.
        shape: empty for a scalar.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of its data. It raises a KeyError if safetensors has no such type."""
        return ITEM_BYTES[self.dtype] * math.prod(self.shape)


@dataclass(frozen=True)
class Blob(TensorSpec):
    """A tensor to write: `data` is C-contiguous and little-endian, and must not change while it is being written."""

    data: memoryview


@dataclass(frozen=True)
class TensorEntry(TensorSpec):
    """One tensor of the state file: `sha256` is the hash of its bytes in the file, in hex."""

    sha256: str


@dataclass(frozen=True)
class CheckpointManifest:
    """A checkpoint's description.

    Attributes:
        path: the checkpoint's folder.
        content: what its writer stored apart from the tensors, in JSON values; a NaN has become None.
        tensors: the state file's tensors by name.
        bytes: size of the state file.
        saved: when it was written, in ISO 8601, UTC.
    """

    path: Path
    content: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]
    bytes: int
    saved: str

    @property
    def health(self) -> str:
        """The state of the training when it was taken: `good`, `doubtful` or `bad`; earlier versions wrote none."""
        return str(self.content.get("health", GOOD))


def encode_manifest(content: Mapping[str, Any], tensors: Mapping[str, TensorEntry], saved: str) -> bytes:
    """Return the bytes of `manifest.json`.

    Raises:
        ValueError: `content` holds a value that JSON has no type for.
    """
    document = {
        "format": CHECKPOINT_FORMAT,
        "version": VERSION,
        "saved": saved,
        "bytes": file_size(tensors),
        # JSON has no NaN, and a NaN must not fail the save.
        "content": to_jsonable_python(dict(content), inf_nan_mode="null"),
        "tensors": {name: vars(entry) for name, entry in tensors.items()},
    }
    body = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()[1:] + b"\n"
    return _first_line(body) + b"\n" + body


def decode_manifest(path: Path, data: bytes) -> CheckpointManifest:
    """Return the manifest of the checkpoint folder `path` from its bytes.

    Raises:
        BadCheckpointError: it is damaged, another program's, or written in another version of the format.
    """
    if not data:
        raise BadCheckpointError(f"{MANIFEST_FILE} is empty")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadCheckpointError(f"{MANIFEST_FILE} is damaged (not JSON: {str(error).splitlines()[0]})") from None
    if not isinstance(document, dict) or document.get("format") != CHECKPOINT_FORMAT:
        raise BadCheckpointError(f"{MANIFEST_FILE} is not of this program: its format is not {CHECKPOINT_FORMAT}")
    # Before the hash: another version may have the hash elsewhere.
    if document.get("version") != VERSION:
        raise BadCheckpointError(f"written in format {str(document.get('version'))[:20]}, this program reads {VERSION}")
    first, _, body = data.partition(b"\n")
    if first != _first_line(body):
        raise BadCheckpointError(f"{MANIFEST_FILE} is damaged (wrong sha256)")
    try:
        return _manifest(path, document)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadCheckpointError(f"{MANIFEST_FILE} is damaged ({type(error).__name__}: {error})") from None


def file_order(tensors: Mapping[str, TensorSpec]) -> list[str]:
    """Return the names in the file's order: wide types first, so that each tensor is aligned to its item's size."""
    return sorted(tensors, key=lambda name: (-ITEM_BYTES[tensors[name].dtype], name))


def state_header(tensors: Mapping[str, TensorSpec]) -> bytes:
    """Return the bytes that the state file begins with; equal tables give equal bytes.

    Raises:
        KeyError: safetensors has no such type.
    """
    table: dict[str, object] = {"__metadata__": {"format": CHECKPOINT_FORMAT, "format_version": str(VERSION)}}
    begin = 0
    for name in file_order(tensors):
        tensor = tensors[name]
        end = begin + tensor.size
        table[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def file_size(tensors: Mapping[str, TensorSpec]) -> int:
    """Return the bytes of the whole state file."""
    return len(state_header(tensors)) + sum(tensor.size for tensor in tensors.values())


def _first_line(body: bytes) -> bytes:
    return b'{"sha256":"%s",' % hashlib.sha256(body).hexdigest().encode()


def _manifest(path: Path, document: Mapping[str, Any]) -> CheckpointManifest:
    tensors = {
        str(name): TensorEntry(str(entry["dtype"]), tuple(map(int, entry["shape"])), str(entry["sha256"]))
        for name, entry in document["tensors"].items()
    }
    if document["bytes"] != file_size(tensors):
        raise ValueError("its size is not the sum of its tensors")
    return CheckpointManifest(path, dict(document["content"]), tensors, int(document["bytes"]), str(document["saved"]))
