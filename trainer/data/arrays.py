"""Numpy arrays in a file that is read whole or not at all.

An .npz file with one wrong bit can raise many kinds of errors, or give other arrays. So a digest follows it, which
numpy and zip programs skip.
"""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DIGEST_BYTES = 32


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], *, compress: bool = False) -> None:
    """Write `arrays` to `path`.

    Raises:
        OSError: The file cannot be written.
    """
    buffer = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(buffer, allow_pickle=False, **arrays)
    content = buffer.getvalue()
    path.write_bytes(content + _digest(content))


def read_arrays(path: Path) -> dict[str, NDArray[Any]] | None:
    """Return the arrays in `path`, or None if they are not there whole."""
    try:
        return arrays_in(path.read_bytes())
    except OSError:
        return None


def arrays_in(file: bytes) -> dict[str, NDArray[Any]] | None:
    """Return the arrays in a file's content, or None if it is not whole."""
    content, digest = file[:-_DIGEST_BYTES], file[-_DIGEST_BYTES:]
    if digest != _digest(content):
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        return dict(stored)


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()
