"""The bytes of images, from files or from a pack's tars: whole, or an error that says in one line why not.

On network storage each read waits for a server. A pack needs one read for an image and no open, and the reads of a
batch wait together, in threads. Files are read one after the other: each open is work for the server that keeps the
names, which all users share, and a job on many nodes would ask it for thousands at once.
"""

import functools
import os
import time
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.data.bad_images import BadImageError

MAX_PIXELS = 89_478_485
"""The largest image, in pixels: the size from which Pillow warns of decompression bombs, 256 MiB of RGB."""
# An uncompressed image with four channels of 16 bits is the largest file that can be right.
_MAX_BYTES = 8 * MAX_PIXELS
_REPACK = "replace or delete it in the folder that was packed, and pack that folder again"
_SLOW_S = 0.001
"""A read that takes longer waited for a server or a disk; one from memory takes 0.05 ms."""
_AHEAD = 16
"""Reads that wait together: more images than a core decodes while one read waits 5 ms (0.5 ms for a small one)."""
_OPEN_TARS = 64


class PackedImage(NamedTuple):
    """Where an image lies in a pack.

    Attributes:
        path: the file that it was, as if the pack's folder held it.
        tar: the file that holds it.
        offset: of its first byte there.
        size: in bytes.
        checksum: CRC-32 of its bytes.
    """

    path: str
    tar: str
    offset: int
    size: int
    checksum: int


ImagePlace = Path | PackedImage
"""A file that is an image, or the place of one in a pack."""


class ImageContent(NamedTuple):
    """The bytes of an image.

    Attributes:
        path: its file, for messages.
        data: uint8 (bytes,).
        remedy: what the user can do if it is bad; an empty text stands for the usual advice.
    """

    path: str
    data: NDArray[np.uint8]
    remedy: str = ""


def read_image(place: ImagePlace) -> ImageContent:
    """Return the bytes of one image.

    Raises:
        BadImageError: it cannot be read, is too large for an image, or is not what was packed.
    """
    return _read_packed(place) if isinstance(place, PackedImage) else _read_file(place)


def try_to_read(place: ImagePlace) -> ImageContent | BadImageError:
    """Return the bytes of one image, or why they cannot be read."""
    try:
        return read_image(place)
    except BadImageError as error:
        return error


def read_ahead(places: Iterable[ImagePlace]) -> Iterator[ImageContent | BadImageError]:
    """Yield the bytes of each image, in order, or why they cannot be read.

    Images of a pack are read in threads from the first read that has to wait.
    """
    remaining = iter(places)
    for place in remaining:
        began = time.perf_counter()
        yield try_to_read(place)
        if isinstance(place, PackedImage) and time.perf_counter() - began > _SLOW_S:
            break
    pending: deque[Future[ImageContent | BadImageError]] = deque()
    for place in remaining:
        pending.append(_threads(os.getpid()).submit(try_to_read, place))
        if len(pending) == _AHEAD:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _read_file(path: Path) -> ImageContent:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            content = _read(descriptor, path, os.fstat(descriptor).st_size, 0)
        finally:
            os.close(descriptor)
    except OSError as error:
        remedy = "check the permissions of file and folder" if isinstance(error, PermissionError) else "check the disk"
        raise BadImageError(str(path), f"cannot be read: {error.strerror or error}", remedy) from None
    return ImageContent(str(path), content)


def _read_packed(image: PackedImage) -> ImageContent:
    try:
        tar = _open_tar(image.tar)  # a name for it: without one it could be closed before it is read
        content = _read(tar.descriptor, image.path, image.size, image.offset)
    except OSError as error:
        raise BadImageError(image.path, f"{image.tar} cannot be read: {error.strerror}", "check the disk") from None
    if zlib.crc32(content.data) != image.checksum:
        reason = f"not as it was packed: {image.tar} is damaged, torn, or of another pack"
        raise BadImageError(image.path, reason, "copy that tar again, or pack the folder again")
    return ImageContent(image.path, content, _REPACK)


def _read(descriptor: int, path: str | Path, size: int, offset: int) -> NDArray[np.uint8]:
    """Return up to `size` bytes, fewer if the file ends before.

    Raises:
        BadImageError: they are too many for an image.
        OSError: they cannot be read.
    """
    if size > _MAX_BYTES:
        raise BadImageError(str(path), f"{size:,} bytes, too large for {MAX_PIXELS:,} pixels")
    content = np.empty(size, dtype=np.uint8)
    done = 0
    while done < size:
        read = os.preadv(descriptor, [content.data[done:]], offset + done)
        if not read:
            break
        done += read
    return content[:done]


class _OpenTar:
    """A tar that stays open while any thread uses it."""

    def __init__(self, path: str) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


@functools.lru_cache(maxsize=_OPEN_TARS)
def _open_tar(path: str) -> _OpenTar:
    return _OpenTar(path)


@functools.lru_cache(maxsize=1)
def _threads(_process: int) -> ThreadPoolExecutor:
    """Return this process's threads: a forked loader has no threads of its parent's."""
    return ThreadPoolExecutor(_AHEAD, thread_name_prefix="read")
