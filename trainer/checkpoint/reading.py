"""A checkpoint is what its manifest says, byte for byte, or there is one plain reason to refuse it.

Nothing is repaired or guessed here, and nothing is changed on disk.
"""

import contextlib
import hashlib
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from trainer.checkpoint.layout import file_order, header, size_of
from trainer.checkpoint.manifest import MANIFEST_FILE, STATE_FILE, BadCheckpointError, Manifest, decode

# hashlib and the file let other threads run while they work on a chunk; smaller ones would make it change hands often.
CHUNK = 4 << 20


def verify(path: Path) -> Manifest:
    """The manifest of the checkpoint folder `path`, with every byte of both files checked.

    Raises:
        BadCheckpointError: the first thing that is wrong.
    """
    manifest = read_manifest(path)
    for name, valid in tensor_checks(manifest):
        if not valid:
            raise BadCheckpointError(f"tensor {name}: wrong sha256")
    return manifest


def read_manifest(path: Path) -> Manifest:
    """The manifest alone, with its own hash checked; the tensors are not read.

    Raises:
        BadCheckpointError: it is missing, unreadable, damaged or of another format.
    """
    with _refusing("it"):
        if not stat.S_ISDIR(path.stat().st_mode):
            raise BadCheckpointError("it is a file, not a folder")
    with _opened(path / MANIFEST_FILE) as (file, _):
        return decode(path, file.read())


def tensor_checks(manifest: Manifest) -> Iterator[tuple[str, bool]]:
    """Each tensor's name, in the file's order, and whether its bytes have their hash.

    Raises:
        BadCheckpointError: the state file is missing, unreadable, or of another size or header: before any tensor.
    """
    with _opened(manifest.path / STATE_FILE) as (file, size):
        if size != manifest.bytes:
            raise BadCheckpointError(wrong_size(STATE_FILE, size, manifest.bytes))
        expected = header(manifest.tensors)
        if file.read(len(expected)) != expected:
            raise BadCheckpointError(f"{STATE_FILE} is damaged (its header is not that of the manifest)")
        buffer = memoryview(bytearray(CHUNK))
        for name in file_order(manifest.tensors):
            entry = manifest.tensors[name]
            yield name, _hash(file, size_of(entry), buffer) == entry.sha256


def wrong_size(name: str, size: int, expected: int) -> str:
    """The reason to refuse a file of `size` bytes."""
    if size == 0:
        return f"{name} is empty"
    what = "the end is missing" if size < expected else "something was added"
    return f"{name} has {size} bytes, not {expected}: {what}"


def _hash(file: BufferedReader, length: int, buffer: memoryview) -> str:
    """SHA-256 of the next `length` bytes, or of those that are left."""
    digest = hashlib.sha256()
    while length > 0:
        read = file.readinto(buffer[: min(length, len(buffer))])
        if not read:
            break
        digest.update(buffer[:read])
        length -= read
    return digest.hexdigest()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[BufferedReader, int]]:
    """A file and its size; only a regular file is opened, since opening a pipe would wait for ever."""
    with _refusing(path.name):
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadCheckpointError(f"{path.name} is not a file")
        with path.open("rb") as file:
            yield file, status.st_size


@contextlib.contextmanager
def _refusing(what: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise BadCheckpointError(f"{what} is missing") from None
    except OSError as error:
        raise BadCheckpointError(f"{what} cannot be read: {error.strerror or error}") from None
