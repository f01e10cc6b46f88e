"""Read every image of a folder and name those that cannot be trained on, before a run stumbles over one at epoch 40.

It is stricter than training: libjpeg only murmurs on stderr about damage inside a file and fills in grey, so each
file is decoded in a process whose stderr is listened to.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch.utils.data import Dataset

from trainer.data.decode import BadImageError, decode
from trainer.data.index import walk_images
from trainer.data.processes import start_worker, whole_item_loader
from trainer.shared.errors import UsageError
from trainer.shared.files import reading

_STDERR = 2
# libjpeg's warnings that mean lost pixels; others, such as extraneous bytes before the end, are harmless.
_DAMAGE = ("premature end of data segment", "bad Huffman code")

# What is unusual about a good file.
Notes = tuple[str, ...]


@dataclass(frozen=True)
class Broken:
    """A file that cannot be trained on, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Report:
    """What a folder holds: number of files read, the broken ones, and how many files are unusual in which way."""

    checked: int
    broken: tuple[Broken, ...]
    notes: dict[str, int]


def verify(path: Path, *, workers: int) -> Report:
    """Decode every image below `path` in `workers` (at least 1) processes.

    Raises:
        UsageError: no such folder, no images in it, or a folder that cannot be read.
    """
    with reading(path):
        if not path.is_dir():
            raise UsageError(f"{path}: no such folder; give a data folder, or train/ or val/ in one")
        files = list(walk_images(path))
    if not files:
        raise UsageError(f"{path}: no images in it")
    notes: Counter[str] = Counter()
    broken = []
    for finding in _findings(files, workers):
        if isinstance(finding, Broken):
            broken.append(finding)
        else:
            notes.update(finding)
    return Report(len(files), tuple(broken), dict(sorted(notes.items())))


def _findings(files: list[Path], workers: int) -> Iterator[Broken | Notes]:
    """A finding for each file, in order."""
    chunks = range(0, len(files), 32)
    for findings in whole_item_loader(_Chunks(files), chunks, workers=workers, start_worker=_listen):
        yield from findings


class _Chunks(Dataset[list[Broken | Notes]]):
    """32 files from a given position, examined in a loader process."""

    def __init__(self, files: list[Path]) -> None:
        self._files = files

    def __getitem__(self, start: int) -> list[Broken | Notes]:
        return [_examine(path) for path in self._files[start : start + 32]]


def _examine(path: Path) -> Broken | Notes:
    os.lseek(_STDERR, 0, os.SEEK_SET)
    os.ftruncate(_STDERR, 0)
    try:
        decode(path)
    except BadImageError as error:
        return Broken(str(path), error.reason)
    murmurs = os.pread(_STDERR, 4096, 0).decode(errors="replace").split("\n")[0].strip()
    if any(damage in murmurs for damage in _DAMAGE):
        return Broken(str(path), f"damaged inside: {murmurs}")
    return _notes(path) + (("decoder warning",) if murmurs else ())


def _notes(path: Path) -> Notes:
    """What is unusual about a good file, from its header."""
    try:
        with Image.open(path) as header:
            kind, mode = str(header.format), header.mode
    except (OSError, Image.DecompressionBombError):
        return ("header unknown to Pillow",)
    named = Image.registered_extensions().get(path.suffix.lower(), kind)
    notes = []
    if kind != named:
        notes.append(f"{kind} named {path.suffix}")
    if mode == "CMYK":
        notes.append("CMYK")
    if mode in ("1", "L", "I;16", "I"):
        notes.append("grey")
    return tuple(notes)


def _listen(worker: int) -> None:
    """Turn this process's stderr into a file in memory that `_examine` reads after each image."""
    start_worker(worker)
    os.dup2(os.memfd_create("stderr"), _STDERR)
