"""Pack a data folder: copy its images into tars, in the order of its list, so that a killed command can be repeated.

Each tar is whole or not there, with its part of the index next to it (`train-00000.tar.npz`) until all are joined. The
list decides what belongs where, so that the same folder gives the same bytes, however often the command was stopped.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import tarfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from trainer.data.archives import RUN_AGAIN
from trainer.data.arrays import read_arrays, write_arrays
from trainer.data.content import ImageContent, read_image
from trainer.data.index import Datasets, ImageIndex, load_datasets
from trainer.data.pack import HASHES, PACK_FILES, PACK_FORMAT, Pack, read_pack, tar_name
from trainer.shared.errors import UsageError
from trainer.shared.files import reading, replacing, writing
from trainer.shared.runs import PACK_INDEX

TAR_BYTES = 4_000_000_000
"""Size from which the next image begins a new tar: below FAT32's largest file (2**32 - 1) and S3's upload (5 GB)."""
_LOCK = ".pack.lock"
_AT_ONCE = 16
_BLOCK = tarfile.BLOCKSIZE

Columns = Mapping[str, NDArray[Any]]
"""The index of the images of one tar, or of a split, by column."""

_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True)
class PackedImages:
    """How many images were packed now, and how many a pack or a stopped command had already."""

    written: int
    present: int


def pack_images(
    source: Path, to: Path, *, tar_bytes: int = TAR_BYTES, progress: Callable[[int], None] = lambda _done: None
) -> PackedImages:
    """Pack the data folder `source` into the folder `to`, or go on with that.

    Args:
        source: has train/ and val/, or only val/.
        progress: called after each tar with the number of images done.

    Raises:
        UsageError: a folder cannot be used, or `source` has changed since a part of it was packed; nothing was written.
        BadImageError: an image cannot be read.
        TrainerError: a file cannot be written.
    """
    with reading(source):
        datasets = load_datasets(source, need_train=(source / "train").is_dir())
    if datasets.val.packed is not None:
        raise UsageError(f"{source}: a pack already; give the folder that it was made of")
    splits = {name: index for name, index in (("train", datasets.train), ("val", datasets.val)) if index is not None}
    with _locked(source, to):
        pack = read_pack(to) if (to / PACK_INDEX).exists() else None
        if pack is not None:
            _check_pack(to, pack, splits)
            _remove_parts(to)
            return PackedImages(0, sum(map(len, splits.values())))
        written = present = 0
        parts: dict[str, list[Columns]] = {name: [] for name in splits}
        for name, index in splits.items():
            start = 0
            while start < len(index):
                tar = to / tar_name(name, len(parts[name]))
                part = _finished_part(tar)
                if part is None:
                    part = _write_part(tar, index, start, tar_bytes)
                    written += len(part["paths"])
                else:
                    _refuse_change(index, part, start, start + len(part["paths"]), tar)
                    present += len(part["paths"])
                parts[name].append(part)
                start += len(part["paths"])
                progress(written + present)
        _join(to, datasets, parts)
    return PackedImages(written, present)


@contextlib.contextmanager
def _locked(source: Path, to: Path) -> Iterator[None]:
    """Make `to`, and keep other processes of this machine from packing into it meanwhile."""
    if to.resolve().is_relative_to(source.resolve()):
        raise UsageError(f"--to {to}: lies in {source}, the folder to pack; give another one")
    with writing(to, RUN_AGAIN):
        to.mkdir(parents=True, exist_ok=True)
        names = sorted(entry.name for entry in to.iterdir() if entry.name != _LOCK)
        strange = next((name for name in names if not PACK_FILES.fullmatch(name)), None)
        if strange is not None:
            raise UsageError(f"--to {to}: holds {strange}, which is no part of a pack; give an empty folder")
        lock = (to / _LOCK).open("w")
    with lock:
        if not _take(lock):
            raise UsageError(f"--to {to}: another process packs into it; wait for its end")
        try:
            yield
        finally:
            (to / _LOCK).unlink(missing_ok=True)


def _take(lock: IO[str]) -> bool:
    """Return whether this process has the lock now; also if the file system has no locks."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
    # A holder removes it at its end: a third process could then make and lock another one.
    return os.fstat(lock.fileno()).st_nlink > 0


def _part_file(tar: Path) -> Path:
    return tar.with_name(f"{tar.name}.npz")


def _finished_part(tar: Path) -> Columns | None:
    """Return what a stopped command wrote down about a tar; None if the tar is not there whole."""
    part = read_arrays(_part_file(tar))
    with reading(tar):
        return part if part is not None and tar.is_file() and tar.stat().st_size == int(part["tar_size"]) else None


def _write_part(tar: Path, index: ImageIndex, start: int, tar_bytes: int) -> Columns:
    """Write a tar of the images from `start` on; return its columns, which are written next to it."""
    rows = []
    digest = hashlib.sha256()
    with writing(tar, RUN_AGAIN), replacing(tar) as partial, partial.open("wb") as file:
        for sample, (image, modified_ns) in enumerate(_ahead(_read_source, _paths(index, start)), start):
            size, checksum = len(image.data), zlib.crc32(image.data.data)
            header = _header(f"{index.root.name}/{os.fsdecode(index.paths[sample])}", size, modified_ns)
            offset = file.tell() + len(header)
            for block in (header, image.data.data, bytes(-size % _BLOCK)):
                file.write(block)
                digest.update(block)
            rows.append((offset, size, checksum, modified_ns))
            if offset + size >= tar_bytes:
                break
        end = bytes(2 * _BLOCK)
        file.write(end)
        digest.update(end)
        tar_size = file.tell()
    offsets, sizes, checksums, times = zip(*rows, strict=True)
    part = {
        "paths": index.paths[start : start + len(rows)],
        "offsets": np.array(offsets, dtype=np.int64),
        "sizes": np.array(sizes, dtype=np.int64),
        "checksums": np.array(checksums, dtype=np.uint32),
        "modified_ns": np.array(times, dtype=np.int64),
        "tar_size": np.array(tar_size, dtype=np.int64),
        "sha256": np.array(digest.hexdigest()),
    }
    with writing(tar, RUN_AGAIN), replacing(_part_file(tar)) as partial:
        write_arrays(partial, part)
    return part


def _paths(index: ImageIndex, start: int) -> Iterator[Path]:
    return map(index.path, range(start, len(index)))


def _read_source(path: Path) -> tuple[ImageContent, int]:
    """Return the bytes of an image's file, and when it was changed last (ns).

    Raises:
        BadImageError: it cannot be read, or is too large for an image.
    """
    with contextlib.suppress(OSError):  # `read_image` says what is wrong
        modified_ns = path.stat().st_mtime_ns  # before the bytes are read: a later change is found
    return read_image(path), modified_ns


def _header(name: str, size: int, modified_ns: int) -> bytes:
    """Return the header of a file in a tar. GNU's form has names as bytes: any file name comes back as it was."""
    member = tarfile.TarInfo(name)
    member.size = size
    member.mtime = modified_ns // 1_000_000_000
    return member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def _ahead(function: Callable[[_T], _R], items: Iterable[_T]) -> Iterator[_R]:
    """Yield `function(item)` for each item, in order, computed by threads a few items ahead."""
    pending: deque[Future[_R]] = deque()
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        for item in items:
            pending.append(threads.submit(function, item))
            if len(pending) == 2 * _AT_ONCE:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _refuse_change(index: ImageIndex, packed: Columns, start: int, stop: int, file: Path) -> None:
    """Refuse to go on with a pack if the folder has other images from `start` to `stop` than were packed.

    Raises:
        UsageError: the folder has changed, or it is another one.
    """
    change = _first_change(index, packed, start, stop)
    if change is not None:
        raise UsageError(
            f"{index.root}: not what {file} was made of: {change}; delete {file.parent}, or give --to another folder"
        )


def _first_change(index: ImageIndex, packed: Columns, start: int, stop: int) -> str | None:
    """Return the first difference between the images that were packed and those in the folder."""
    before, now = packed["paths"], index.paths[start:stop]
    both = min(len(before), len(now))
    differs = np.flatnonzero(before[:both] != now[:both])
    first = int(differs[0]) if differs.size else both
    if first < max(len(before), len(now)):
        gone = first < len(before) and not np.any(index.paths == before[first])
        return f"{os.fsdecode(before[first] if gone else now[first])} is {'gone' if gone else 'new'}"
    columns = (packed[name].tolist() for name in ("sizes", "modified_ns", "checksums"))
    changes = _ahead(_describe_change, zip(_paths(index, start), *columns, strict=False))
    return next(filter(None, changes), None)


def _describe_change(row: tuple[Path, int, int, int]) -> str | None:
    """Return how a file differs from what was packed; a copy of it may have another time."""
    path, size, modified_ns, checksum = row
    with reading(path):
        status = path.stat()
    if (status.st_size, status.st_mtime_ns) == (size, modified_ns):
        return None
    same = status.st_size == size and zlib.crc32(read_image(path).data.data) == checksum
    return None if same else f"{path.name} has other content"


def _check_pack(to: Path, pack: Pack, splits: Mapping[str, ImageIndex]) -> None:
    """Refuse a whole pack of other images than the folder has.

    Raises:
        UsageError: the pack is of another folder, or the folder has changed.
    """
    if pack.splits.keys() != splits.keys():
        raise UsageError(
            f"--to {to}: a pack of {' and '.join(pack.splits)}, the folder has {' and '.join(splits)};"
            " give another folder"
        )
    for name, index in splits.items():
        _refuse_change(index, vars(pack.splits[name]), 0, len(index), to / PACK_INDEX)


def _join(to: Path, datasets: Datasets, parts: Mapping[str, list[Columns]]) -> None:
    """Write the hashes of the tars and the index of all, then remove the parts."""
    index: dict[str, NDArray[Any]] = {
        "format": np.array(PACK_FORMAT),
        "classes": np.array([os.fsencode(name) for name in datasets.classes], dtype=np.bytes_),
        "tar_sizes": np.array([part["tar_size"] for of_split in parts.values() for part in of_split]),
    }
    hashes: dict[str, NDArray[Any]] = {}
    for name, of_split in parts.items():
        for column in ("paths", "offsets", "sizes", "checksums", "modified_ns"):
            index[f"{name}_{column}"] = np.concatenate([part[column] for part in of_split])
        counts = [len(part["paths"]) for part in of_split]
        index[f"{name}_firsts"] = np.cumsum([0, *counts[:-1]], dtype=np.int64)
        hashes |= {tar_name(name, number): part["sha256"] for number, part in enumerate(of_split)}
    for split, name in ((datasets.train, "train"), (datasets.val, "val")):
        if split is not None:
            index[f"{name}_labels"] = split.labels
    with writing(to, RUN_AGAIN):
        with replacing(to / HASHES) as partial:
            partial.write_text("".join(f"{value}  {name}\n" for name, value in hashes.items()), encoding="ascii")
        with replacing(to / PACK_INDEX) as partial:
            write_arrays(partial, index)
    _remove_parts(to)


def _remove_parts(to: Path) -> None:
    """Remove the parts of the index, which a command that was killed at its end has left."""
    with writing(to, RUN_AGAIN):
        for part in to.glob("*.tar.npz"):
            part.unlink()
