"""The images below a folder, for training and for `data verify` alike: each once, and a count of all that is left out.

Links to folders are followed, and loops of links end. An image with several names in one class, by links, counts once;
an image that two classes link to belongs to both. The suffix tells what is an image; the content does for a file
without one. Hidden entries are left out.
"""

import os
import re
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from trainer.shared.errors import UsageError
from trainer.shared.files import reading, why_no_folder

IMAGE_SUFFIXES = (
    *(".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg"),
    *(".jpf", ".jpg", ".jpx", ".mpo", ".pbm", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
"""The suffixes of the formats that `decode_image` reads."""
SPLITS = ("train", "val")

_HIDDEN, _NO_SUFFIX, _NO_CLASS = "hidden entries", "no image and without a suffix", "outside of a class folder"
_NO_FILE, _BROKEN_LINK, _LOOP = "pipes and devices", "broken links", "links to a folder around them"
_EMPTY = "class folders without an image, which training refuses"
_OTHER_NAME, _OTHER_FOLDER = "further names of an image", "folders that are neither train/ nor val/"
# A name can end with a dot and the number of a frame, or with a dot and words: neither is a suffix. Editors add ~.
_SUFFIX = re.compile(r"\.(?!\d+$)\w{1,10}~?")
_MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|BM.{4}\0{4}|II\*\0|MM\0\*|P[1-6]\s+[\d#]|RIFF.{4}WEBP|.{4}ftypavi[fs]"
    rb"|\xff\x4f\xff\x51|\0\0\0\x0cjP  ",
    re.DOTALL,
)
_MAGIC_BYTES = 16
_KINDS_SHOWN = 6


class Stamp(NamedTuple):
    """What changes when an entry of a folder comes or goes, or a file's content changes; all zeros if nothing is there.

    Copying programs set the time of modification (ns) back, but no program can set the time of change (ns). The inode
    differs if a link leads elsewhere. The size (bytes) and the number of links help where a clock is coarse.
    """

    modified_ns: int
    changed_ns: int
    inode: int
    size: int
    links: int


def stamp(path: str | Path) -> Stamp:
    """Return the stamp of a folder or file; it is opened, because an NFS client then asks its server, not the cache."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # the path may be a pipe by now
    except OSError:
        return Stamp(0, 0, 0, 0, 0)
    try:
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    inode = status.st_ino & (2**63 - 1)  # so that it fits into the index's array
    return Stamp(status.st_mtime_ns, status.st_ctime_ns, inode, status.st_size, status.st_nlink)


@dataclass
class SplitTree:
    """The classes and images of one split.

    Attributes:
        classes: names of the class folders, sorted.
        images: of each class, sorted; encoded paths relative to the split's folder.
        stamps: of each folder that was read, of each link that may lead elsewhere later, and of each file that was left
            out for its content; by relative path.
        left_out: number of files of each suffix or kind that are no images of a class.
    """

    classes: list[str] = field(default_factory=list)
    images: list[list[bytes]] = field(default_factory=list)
    stamps: dict[str, Stamp] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)


def read_tree(path: Path) -> dict[Path, SplitTree]:
    """Return train/ and val/ of a data folder, or the only split, or the only class, that `path` is.

    Raises:
        UsageError: no such folder, or a folder that cannot be read.
    """
    with reading(path):
        if not path.is_dir():
            raise UsageError(f"{path}: {why_no_folder(path)}; give a data folder, or train/ or val/ in one")
        trees = {path / name: read_split(path / name) for name in SPLITS if (path / name).is_dir()}
        if trees:
            others = [entry for entry in path.iterdir() if entry.name not in SPLITS and not entry.name.startswith(".")]
            count = sum(entry.is_dir() for entry in others)
            for tree in trees.values():
                tree.left_out += Counter({_EMPTY: sum(not images for images in tree.images)})
            return trees | ({path: SplitTree(left_out=Counter({_OTHER_FOLDER: count}))} if count else {})
        tree = read_split(path)
        if tree.left_out[_NO_CLASS] and not (tree.classes and path.name in SPLITS):
            tree = read_class(path)
    return {path: tree}


def read_split(root: Path) -> SplitTree:
    """Return the classes and images of one split's folder.

    Raises:
        OSError: a folder cannot be read.
    """
    reader = _Reader(root)
    for name in reader.class_folders():
        reader.read_class(name)
    return _without_zeros(reader.tree)


def read_class_names(root: Path) -> list[str]:
    """Return the names of the class folders in one split's folder, sorted.

    Raises:
        OSError: the folder cannot be read.
    """
    return _Reader(root).class_folders()


def read_class(folder: Path) -> SplitTree:
    """Return the images of one class's folder, as a split with a single class without a name.

    Raises:
        OSError: a folder cannot be read.
    """
    reader = _Reader(folder)
    reader.read_class("")
    return _without_zeros(reader.tree)


def describe_left_out(folder: Path, left_out: Mapping[str, int]) -> str:
    """Return `left out of train: .txt 3, hidden entries 2`, the most frequent first; no text if nothing was."""
    if not left_out:
        return ""
    kinds = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{kind} {count:,}" for kind, count in kinds[:_KINDS_SHOWN])
    others = sum(count for _, count in kinds[_KINDS_SHOWN:])
    return f"left out of {folder}: {shown}" + (f", others {others:,}" if others else "")


class _Target(NamedTuple):
    """What a link leads to."""

    real: str
    is_folder: bool


class _Reader:
    """Reads the folders of one split into `tree`; paths are relative to the split's folder, "" is that folder."""

    def __init__(self, root: Path) -> None:
        self.tree = SplitTree()
        self._root = os.fspath(root)

    def class_folders(self) -> list[str]:
        """Return the sorted names of the folders, and of the links to folders, in the split's folder."""
        files, folders, links = self.read_folder("")
        self.tree.left_out[_NO_CLASS] += len(files)
        real = os.path.realpath(self._root)
        for link in links:
            target = self.follow(link, (real,))
            if target is not None and target.is_folder:
                folders.append(link)
            elif target is not None:
                self.tree.left_out[_NO_CLASS] += 1
        return sorted(folders)

    def read_class(self, name: str) -> None:
        """Add a class and its images: first those in its own folders, then those behind links."""
        class_real = os.path.realpath(self._path(name))
        names: dict[str, str] = {}  # of each image, by its real path
        folders = [(name, class_real)]
        links: list[tuple[str, str]] = []
        read: set[str] = set()
        while folders or links:
            if folders:
                folder, real = folders.pop()
                if real in read:
                    continue
                read.add(real)
                files, nested, linked = self.read_folder(folder)
                for file in files:
                    self._add(names, f"{real}/{_name(file)}", file)
                folders += [(path, f"{real}/{_name(path)}") for path in nested]
                links = sorted([*links, *((path, real) for path in linked)], reverse=True)
                continue
            link, real = links.pop()
            target = self.follow(link, (class_real, real))
            if target is None:
                continue
            if not target.is_folder:
                self._add(names, target.real, link)
            elif target.real not in read:
                folders.append((link, target.real))
            else:
                self.tree.stamps[link] = stamp(self._path(link))
        self.tree.classes.append(name)
        self.tree.images.append(sorted(map(os.fsencode, names.values())))

    def read_folder(self, folder: str) -> tuple[list[str], list[str], list[str]]:
        """Return the images, the folders and the links in a folder, and count its other entries as left out."""
        # The stamp is taken first: a file that arrives before the listing makes the stamp stale, not the listing.
        self.tree.stamps[folder] = stamp(self._path(folder))
        files, folders, links = [], [], []
        prefix = f"{folder}/" if folder else ""
        with os.scandir(self._path(folder)) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    self.tree.left_out[_HIDDEN] += 1
                elif entry.is_symlink():
                    links.append(prefix + entry.name)
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(prefix + entry.name)
                elif not entry.is_file(follow_symlinks=False):
                    # Its reader could wait for ever.
                    self.tree.left_out[_NO_FILE] += 1
                elif self._is_image(prefix + entry.name):
                    files.append(prefix + entry.name)
        return files, folders, links

    def follow(self, link: str, inside: tuple[str, ...]) -> _Target | None:
        """Return the image or the folder that a link leads to; None for all else, and for a folder around `inside`.

        A broken link with the name of an image counts as one: its reader reports it, but without it nothing would.
        """
        path = self._path(link)
        real = os.path.realpath(path)
        try:
            mode = Path(path).stat().st_mode
        except OSError:
            if path.lower().endswith(IMAGE_SUFFIXES):
                return _Target(real, is_folder=False)
            self.tree.left_out[_BROKEN_LINK] += 1
            self.tree.stamps[link] = stamp(path)
            return None
        if stat.S_ISDIR(mode):
            if not any(folder == real or folder.startswith(real.rstrip("/") + "/") for folder in inside):
                return _Target(real, is_folder=True)
            self.tree.left_out[_LOOP] += 1
            self.tree.stamps[link] = stamp(path)
        elif not stat.S_ISREG(mode):
            self.tree.left_out[_NO_FILE] += 1
        elif self._is_image(link):
            return _Target(real, is_folder=False)
        return None

    def _path(self, relative: str) -> str:
        return f"{self._root}/{relative}" if relative else self._root

    def _add(self, names: dict[str, str], real: str, name: str) -> None:
        if names.setdefault(real, name) != name:
            self.tree.left_out[_OTHER_NAME] += 1

    def _is_image(self, name: str) -> bool:
        """Return whether a file is an image, or count it as left out."""
        if name.lower().endswith(IMAGE_SUFFIXES):
            return True
        _, dot, suffix = _name(name).lower().rpartition(".")
        kind = dot + suffix
        if not _SUFFIX.fullmatch(kind):
            before = stamp(self._path(name))
            if _begins_like_an_image(self._path(name)):
                return True
            # It can be written over, which leaves its folder's stamp as it is.
            self.tree.stamps[name] = before
            kind = _NO_SUFFIX
        self.tree.left_out[kind] += 1
        return False


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _begins_like_an_image(path: str) -> bool:
    try:
        with Path(path).open("rb", buffering=0) as file:
            return _MAGIC.match(file.read(_MAGIC_BYTES)) is not None
    except OSError:
        return False


def _without_zeros(tree: SplitTree) -> SplitTree:
    tree.left_out = +tree.left_out
    return tree
