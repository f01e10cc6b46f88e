"""What a checkpoint says about itself, in one exact byte form that shows any change to it.

The first line of `manifest.json` is `{"sha256":"...",` and holds the hash of all that follows it; the rest is compact
JSON and a newline. So the file is plain JSON, and no byte of it, a space neither, can differ unseen.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.checkpoint.layout import FORMAT, VERSION, file_size

MANIFEST_FILE = "manifest.json"
STATE_FILE = "state.safetensors"


class BadCheckpointError(Exception):
    """A checkpoint that must not be used; `str(refused)` is the reason, without the path."""


@dataclass(frozen=True)
class Entry:
    """One tensor of the state file.

    Attributes:
        dtype: safetensors' name of the type, such as BF16.
        shape: empty for a scalar.
        sha256: of its bytes in the file, in hex.
    """

    dtype: str
    shape: tuple[int, ...]
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A checkpoint's description.

    Attributes:
        path: the checkpoint's folder.
        content: what its writer noted beside the tensors: JSON values; a float that was not finite is None.
        tensors: the state file's tensors by name.
        bytes: size of the state file.
        saved: when it was written, in ISO 8601, UTC.
    """

    path: Path
    content: Mapping[str, Any]
    tensors: Mapping[str, Entry]
    bytes: int
    saved: str


def encode(content: Mapping[str, Any], tensors: Mapping[str, Entry], saved: str) -> bytes:
    """The bytes of `manifest.json`.

    Raises:
        TypeError: `content` holds what JSON cannot.
    """
    document = {
        "format": FORMAT,
        "version": VERSION,
        "saved": saved,
        "bytes": file_size(tensors),
        "content": _plain(content),
        "tensors": {name: vars(entry) for name, entry in tensors.items()},
    }
    body = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()[1:] + b"\n"
    return _first_line(body) + b"\n" + body


def decode(path: Path, data: bytes) -> Manifest:
    """The manifest of the checkpoint folder `path` from its bytes.

    Raises:
        BadCheckpointError: it is damaged, another program's, or written in another version of the format.
    """
    if not data:
        raise BadCheckpointError(f"{MANIFEST_FILE} is empty")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadCheckpointError(f"{MANIFEST_FILE} is damaged (not JSON: {str(error).splitlines()[0]})") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise BadCheckpointError(f"{MANIFEST_FILE} is not of this program: its format is not {FORMAT}")
    # Before the hash: another version may well place it elsewhere.
    if document.get("version") != VERSION:
        raise BadCheckpointError(f"written in format {str(document.get('version'))[:20]}, this program reads {VERSION}")
    first, _, body = data.partition(b"\n")
    if first != _first_line(body):
        raise BadCheckpointError(f"{MANIFEST_FILE} is damaged (wrong sha256)")
    try:
        return _manifest(path, document)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadCheckpointError(f"{MANIFEST_FILE} is damaged ({type(error).__name__}: {error})") from None


def _first_line(body: bytes) -> bytes:
    return b'{"sha256":"%s",' % hashlib.sha256(body).hexdigest().encode()


def _manifest(path: Path, document: Mapping[str, Any]) -> Manifest:
    tensors = {
        str(name): Entry(str(entry["dtype"]), tuple(map(int, entry["shape"])), str(entry["sha256"]))
        for name, entry in document["tensors"].items()
    }
    if document["bytes"] != file_size(tensors):
        raise ValueError("its size is not that of its tensors")
    return Manifest(path, dict(document["content"]), tensors, int(document["bytes"]), str(document["saved"]))


def _plain(value: object) -> object:
    """The value in JSON's types; JSON has no NaN, and a figure that is none must not cost the checkpoint."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
