"""The images of a data folder: the files and the class of each, listed once and cached.

A walk over ImageNet's 1.28 million files takes minutes on a network file system, so the listing is stored in the user's
cache folder and read again only when a folder has changed. File names live in one numpy array rather than in a million
Python strings: loader processes would copy those page by page as they touch reference counts.
"""

import contextlib
import hashlib
import os
import time
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.data.arrays import read_arrays, write_arrays
from trainer.data.content import ImagePlace
from trainer.data.pack import Pack, PackedSplit, read_pack
from trainer.data.tree import Stamp, describe_left_out, read_class_names, read_split, stamp
from trainer.shared.errors import UsageError
from trainer.shared.files import reading, replacing, text_if_readable, why_no_folder

_CACHE_VERSION = 5
# While a folder's time stamp is this fresh, a new file can leave it unchanged (coarse clocks, NFS).
_SETTLED_NS = 3_000_000_000
# Long enough for all processes of one start.
_FUSE_EXPIRY_NS = 120_000_000_000
_NEVER_NS = 2**63 - 1
_UNUSED_S = 90 * 86_400.0
"""How long a cache stays that no process reads: its data folder has gone, or another one has its place."""


@dataclass(frozen=True)
class ImageIndex:
    """The images of one split, sorted by class and name.

    Attributes:
        root: the split's folder.
        classes: class names; a label is an index into them.
        paths: (N,) encoded paths relative to `root`.
        labels: (N,) int64.
        left_out: number of other files in the split, by suffix or kind.
        packed: where the images lie in a pack; None if each is a file.
    """

    root: Path
    classes: tuple[str, ...]
    paths: NDArray[np.bytes_]
    labels: NDArray[np.int64]
    left_out: Mapping[str, int] = field(default_factory=dict)
    packed: PackedSplit | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, sample: int) -> Path:
        """Return the file of one sample; of a pack, the file that it was, if the pack's folder held it."""
        return self.root / os.fsdecode(self.paths[sample])

    def place(self, sample: int) -> ImagePlace:
        """Return where one sample is read from."""
        return self.path(sample) if self.packed is None else self.packed.place(sample)


@dataclass(frozen=True)
class Datasets:
    """A data folder or a pack: training images (None for an evaluation) and validation images, with the same labels.

    `fingerprint` is a hash of the class names, file names and labels, not of the pixels.
    """

    train: ImageIndex | None
    val: ImageIndex
    fingerprint: str

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; the labels of both splits are indices into them."""
        return self.val.classes

    @property
    def left_out(self) -> list[str]:
        """A line for each split with files that are no images of a class."""
        splits = [split for split in (self.train, self.val) if split is not None and split.left_out]
        return [describe_left_out(split.root, split.left_out) for split in splits]


def load_datasets(data_path: Path, *, need_train: bool = True) -> Datasets:
    """Index `data_path`/train and `data_path`/val, or a pack. Validation labels count in train's classes, if there are.

    Raises:
        UsageError: a folder is missing, unreadable or empty, val/ has a class that train/ lacks, or a pack is broken.
    """
    pack = read_pack(data_path)
    if pack is not None:
        return _packed_datasets(data_path, pack, need_train=need_train)
    with reading(data_path):
        if not data_path.is_dir():
            fault = why_no_folder(data_path)
            raise UsageError(f"--data-path {data_path}: {fault}; it must hold train/ and val/, one folder per class")
        train = load_split(data_path, "train") if need_train else None
        val = load_split(data_path, "val")
        if train is not None:
            val = _in_classes_of(train.classes, val)
        elif (data_path / "train").is_dir():
            val = _in_classes_of(tuple(read_class_names(data_path / "train")), val)
    splits = [split for split in (train, val) if split is not None]
    return Datasets(train, val, _fingerprint(splits))


def _packed_datasets(data_path: Path, pack: Pack, *, need_train: bool) -> Datasets:
    if need_train and "train" not in pack.splits:
        raise UsageError(f"--data-path {data_path}: a pack without training images; pack a folder with train/ and val/")
    indexes = {
        name: ImageIndex(split.folder, pack.classes, split.paths, split.labels, packed=split)
        for name, split in pack.splits.items()
        if need_train or name == "val"
    }
    return Datasets(indexes.get("train"), indexes["val"], _fingerprint(list(indexes.values())))


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
            index, stamps = _scan(root)
            if cache:
                _write_cache(cache, index, stamps, started_ns)
    _refuse_gaps(index)
    return index


def _scan(root: Path) -> tuple[ImageIndex, dict[str, Stamp]]:
    """Return the index of a split, and the stamp of each folder that it was read from."""
    tree = read_split(root)
    labels = np.repeat(np.arange(len(tree.classes), dtype=np.int64), [len(images) for images in tree.images])
    paths = np.array([path for images in tree.images for path in images], dtype=np.bytes_)
    return ImageIndex(root, tuple(tree.classes), paths, labels, dict(tree.left_out)), tree.stamps


def _refuse_gaps(index: ImageIndex) -> None:
    left_out = f"; {describe_left_out(index.root, index.left_out)}" if index.left_out else ""
    if not index.classes:
        raise UsageError(f"{index.root}: no class folders; each class needs a folder of its images{left_out}")
    if not len(index):
        raise UsageError(f"{index.root}: no images in {len(index.classes)} class folders{left_out}")
    empty = np.flatnonzero(np.bincount(index.labels, minlength=len(index.classes)) == 0)
    if empty.size:
        names = _some([index.classes[label] for label in empty])
        raise UsageError(f"{index.root}: no images in class {names}; add images or delete the folder{left_out}")


def _in_classes_of(classes: tuple[str, ...], val: ImageIndex) -> ImageIndex:
    position = {name: label for label, name in enumerate(classes)}
    unknown = [name for name in val.classes if name not in position]
    if unknown:
        composed = {unicodedata.normalize("NFC", name) for name in classes}
        alike = any(unicodedata.normalize("NFC", name) in composed for name in unknown)
        advice = "train/ has these letters in another Unicode form: rename one of the two folders" if alike else ""
        raise UsageError(
            f"{val.root}: class {_some(unknown)} is not in {val.root.parent / 'train'};"
            f" {advice or 'both need the same class folders'}"
        )
    renumber = np.array([position[name] for name in val.classes], dtype=np.int64)
    return replace(val, classes=classes, labels=renumber[val.labels])


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def _fingerprint(splits: list[ImageIndex]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for split in splits:
        names = os.fsencode("\0".join(split.classes))
        for part in (split.root.name.encode(), names, b"\0".join(split.paths.tolist())):
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
    """Return the cached index; None if it is missing or damaged, or if a folder has or may have changed since."""
    stored = read_arrays(cache)
    if stored is None or time.time_ns() > stored["expires_ns"]:
        return None
    for folder, values in zip(stored["folders"].tolist(), stored["stamps"].tolist(), strict=True):
        before = Stamp(*values)
        has_settled = max(before.modified_ns, before.changed_ns) <= int(stored["started_ns"]) - _SETTLED_NS
        if not has_settled or stamp(root / os.fsdecode(folder)) != before:
            return None
    left_out = dict(zip(map(os.fsdecode, stored["left_out"].tolist()), stored["counts"].tolist(), strict=True))
    classes = tuple(map(os.fsdecode, stored["classes"].tolist()))
    with contextlib.suppress(OSError):  # of another user, or on a disk that cannot be written
        os.utime(cache)
    return ImageIndex(root, classes, stored["paths"], stored["labels"], left_out)


def _on_fuse(root: Path, folders: Iterable[str]) -> bool:
    """Return whether a folder is on a FUSE file system: some, such as object stores, do not keep times of folders."""
    devices = {(root / folder).stat().st_dev for folder in folders if (root / folder).exists()}
    numbers = {f"{os.major(device)}:{os.minor(device)}" for device in devices}
    mounts = text_if_readable(Path("/proc/self/mountinfo")).splitlines()
    return any(line.split()[2] in numbers and line.partition(" - ")[2].startswith("fuse") for line in mounts)


def _write_cache(cache: Path, index: ImageIndex, stamps: Mapping[str, Stamp], started_ns: int) -> None:
    """Write the index. Several processes may do so at once, and a failed write is not an error."""
    partial = cache.with_name(f".{cache.name}.{os.getpid()}")
    expires_ns = time.time_ns() + _FUSE_EXPIRY_NS if _on_fuse(index.root, stamps) else _NEVER_NS
    arrays = {
        "started_ns": np.array(started_ns, dtype=np.int64),
        "expires_ns": np.array(expires_ns, dtype=np.int64),
        "folders": _encoded(stamps),
        "stamps": np.array(list(stamps.values()), dtype=np.int64),
        "classes": _encoded(index.classes),
        "paths": index.paths,
        "labels": index.labels,
        "left_out": _encoded(index.left_out),
        "counts": np.array(list(index.left_out.values()), dtype=np.int64),
    }
    with contextlib.suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        with replacing(cache, partial=partial, sync=False):
            write_arrays(partial, arrays)
        _remove_unused(cache.parent)


def _remove_unused(folder: Path) -> None:
    """Remove each index of an older format, and each one that no process has read for long.

    If another process uses one at this moment, it has read it whole, or writes it again.
    """
    oldest = time.time() - _UNUSED_S
    # A hidden one was begun by a process that was killed.
    for path in (*folder.glob("index-*.npz"), *folder.glob(".index-*.npz.*")):
        version = path.name.split("-")[1]
        is_older = version.isdecimal() and int(version) < _CACHE_VERSION
        with contextlib.suppress(OSError):  # another process was faster, or the file is another user's
            if is_older or path.stat().st_mtime < oldest:
                path.unlink()


def _encoded(texts: Iterable[str]) -> NDArray[np.bytes_]:
    return np.array([os.fsencode(text) for text in texts], dtype=np.bytes_)
