"""The images of a data folder: the files and the class of each, listed once and cached.

A walk over ImageNet's 1.28 million files takes minutes on a network file system, so the listing is stored in the user's
cache folder and read again only when a folder has changed. File names live in one numpy array rather than in a million
Python strings: loader processes would copy those page by page as they touch reference counts.
"""

import contextlib
import hashlib
import os
import stat
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.shared.errors import UsageError
from trainer.shared.files import reading, replacing

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_CACHE_VERSION = 2
# While a folder's time stamp is this fresh, a new file can leave it unchanged (coarse clocks, NFS).
_SETTLED_NS = 3_000_000_000


@dataclass(frozen=True)
class ImageIndex:
    """The images of one split, sorted by class and name.

    Attributes:
        root: the split's folder.
        classes: class names; a label is an index into them.
        paths: (N,) encoded paths relative to `root`.
        labels: (N,) int64.
    """

    root: Path
    classes: tuple[str, ...]
    paths: NDArray[np.bytes_]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, sample: int) -> Path:
        """Return the file of one sample."""
        return self.root / os.fsdecode(self.paths[sample])


@dataclass(frozen=True)
class Datasets:
    """A data folder: training images (None for an evaluation) and validation images, with the same labels.

    `fingerprint` is a hash of the class names, file names and labels, not of the pixels.
    """

    train: ImageIndex | None
    val: ImageIndex
    fingerprint: str

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; the labels of both splits are indices into them."""
        return self.val.classes


def load_datasets(data_path: Path, *, need_train: bool = True) -> Datasets:
    """Index `data_path`/train and `data_path`/val. Validation labels count in train's classes, if there is a train/.

    Raises:
        UsageError: a folder is missing, unreadable or empty, or val/ has a class that train/ lacks.
    """
    with reading(data_path):
        if not data_path.is_dir():
            raise UsageError(
                f"--data-path {data_path}: no such folder; it must hold train/ and val/, one folder per class"
            )
        train = load_split(data_path, "train") if need_train else None
        val = load_split(data_path, "val")
        if train is not None:
            val = _in_classes_of(train.classes, val)
        elif (data_path / "train").is_dir():
            val = _in_classes_of(tuple(_list_folder(data_path / "train")[1]), val)
    splits = [split for split in (train, val) if split is not None]
    return Datasets(train, val, _fingerprint(splits))


def load_split(data_path: Path, split: str) -> ImageIndex:
    """Index one split; read the cache if no folder has changed since it was written.

    Raises:
        UsageError: the folder is missing, unreadable, or has no class folders, or a class has no images.
    """
    root = data_path / split
    with reading(root):
        if not root.is_dir():
            raise UsageError(f"--data-path {data_path}: no {split}/ folder; it must hold train/ and val/")
        cache = _cache_file(root)
        index = _read_cache(cache, root) if cache else None
        if index is None:
            started_ns = time.time_ns()
            index, folders = _scan(root)
            if cache and max(folders.values()) < started_ns - _SETTLED_NS:
                _write_cache(cache, index, folders)
    _refuse_gaps(index)
    return index


def walk_images(folder: Path) -> Iterator[Path]:
    """Yield every image file below `folder`, sorted within each folder; hidden entries are left out.

    Raises:
        OSError: a folder cannot be read.
    """
    names, folders = _list_folder(folder)
    yield from (folder / name for name in names)
    for name in folders:
        yield from walk_images(folder / name)


def _scan(root: Path) -> tuple[ImageIndex, dict[str, int]]:
    """Return the index of a split, and the time stamp (ns) of each folder it was read from."""
    folders = {"": root.stat().st_mtime_ns}
    classes = _list_folder(root)[1]
    paths: list[bytes] = []
    counts: list[int] = []
    for name in classes:
        before = len(paths)
        pending = [name]
        while pending:
            folder = pending.pop()
            # The stamp is read first: a file that arrives before the listing makes the stamp stale, not the listing.
            folders[folder] = (root / folder).stat().st_mtime_ns
            files, nested = _list_folder(root / folder)
            paths += [os.fsencode(f"{folder}/{file}") for file in files]
            pending += [f"{folder}/{sub}" for sub in nested if not (root / folder / sub).is_symlink()]
        paths[before:] = sorted(paths[before:])
        counts.append(len(paths) - before)
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), counts)
    return ImageIndex(root, tuple(classes), np.array(paths, dtype=np.bytes_), labels), folders


def _list_folder(folder: Path) -> tuple[list[str], list[str]]:
    """Return the sorted names of the image files and of the folders in `folder`."""
    files, folders = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.name.lower().endswith(IMAGE_SUFFIXES) and _is_file(entry):
                files.append(entry.name)
            elif entry.is_dir():
                folders.append(entry.name)
    return sorted(files), sorted(folders)


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Return whether it can be an image: a pipe or a device cannot, and its reader could wait for ever.

    A broken link counts: its reader reports it, while a listing without it would hide it. Only a link costs a look at
    its target.
    """
    if not entry.is_symlink():
        return entry.is_file()
    try:
        return stat.S_ISREG(entry.stat().st_mode)
    except OSError:
        return True


def _refuse_gaps(index: ImageIndex) -> None:
    if not index.classes:
        raise UsageError(f"{index.root}: no class folders; each class needs a folder of its images")
    if not len(index):
        raise UsageError(f"{index.root}: no images in {len(index.classes)} class folders ({', '.join(IMAGE_SUFFIXES)})")
    empty = np.flatnonzero(np.bincount(index.labels, minlength=len(index.classes)) == 0)
    if empty.size:
        names = _some([index.classes[label] for label in empty])
        raise UsageError(f"{index.root}: no images in class {names}; add images or delete the folder")


def _in_classes_of(classes: tuple[str, ...], val: ImageIndex) -> ImageIndex:
    position = {name: label for label, name in enumerate(classes)}
    unknown = [name for name in val.classes if name not in position]
    if unknown:
        raise UsageError(
            f"{val.root}: class {_some(unknown)} is not in {val.root.parent / 'train'};"
            " both need the same class folders"
        )
    renumber = np.array([position[name] for name in val.classes], dtype=np.int64)
    return ImageIndex(val.root, classes, val.paths, renumber[val.labels])


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def _fingerprint(splits: list[ImageIndex]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for split in splits:
        for part in (split.root.name.encode(), "\0".join(split.classes).encode(), b"\0".join(split.paths.tolist())):
            digest.update(len(part).to_bytes(8, "little") + part)
        digest.update(split.labels.astype("<i8").tobytes())
    return digest.hexdigest()


def _cache_file(root: Path) -> Path | None:
    """Return the cache of the index of `root`: in the user's cache folder, since data is often mounted read-only."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(base) if base else Path.home() / ".cache"
    except RuntimeError:  # an unknown user id without HOME, common in containers
        return None
    name = hashlib.blake2b(os.fsencode(root.resolve()), digest_size=16).hexdigest()
    return folder / "pnas" / f"index-{_CACHE_VERSION}-{name}.npz"


def _read_cache(cache: Path, root: Path) -> ImageIndex | None:
    """Return the cached index; None if it is missing or damaged, or if any folder has changed since."""
    try:
        # Opened here, because numpy leaves a damaged file open that it opened itself.
        with cache.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            folders, stamps = stored["folders"], stored["stamps"]
            classes, paths, labels = stored["classes"], stored["paths"], stored["labels"]
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    try:
        current = [(root / os.fsdecode(folder)).stat().st_mtime_ns for folder in folders.tolist()]
    except OSError:
        return None
    if current != stamps.tolist():
        return None
    return ImageIndex(root, tuple(os.fsdecode(name) for name in classes.tolist()), paths, labels)


def _write_cache(cache: Path, index: ImageIndex, folders: dict[str, int]) -> None:
    """Write the index. Several processes may do so at once, and a failed write is not an error."""
    partial = cache.with_name(f".{cache.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        with replacing(cache, partial=partial, sync=False), partial.open("wb") as file:
            np.savez(
                file,
                folders=np.array([os.fsencode(folder) for folder in folders], dtype=np.bytes_),
                stamps=np.array(list(folders.values()), dtype=np.int64),
                classes=np.array([os.fsencode(name) for name in index.classes], dtype=np.bytes_),
                paths=index.paths,
                labels=index.labels,
            )
