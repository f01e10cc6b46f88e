"""Read every image of a folder or a pack and list the unusable ones, before a run fails on one of them at epoch 40.

It is stricter than training: for damage inside a file libjpeg only prints a warning on stderr and fills in grey. So
each file is decoded in a process whose stderr is read.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from trainer.data.bad_images import BadImageError
from trainer.data.content import ImageContent, ImagePlace, read_image
from trainer.data.decode import decode_content, open_image
from trainer.data.pack import read_pack
from trainer.data.processes import start_worker, whole_item_loader
from trainer.data.tree import SplitTree

_STDERR = 2
# libjpeg's warnings that mean lost pixels; others, such as extraneous bytes before the end, are harmless.
_DAMAGE = ("premature end of data segment", "bad Huffman code")

# Unusual properties of a good file.
Notes = tuple[str, ...]


@dataclass(frozen=True)
class UnusableFile:
    """A file that cannot be trained on, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class VerifyReport:
    """What the images of a folder are like.

    Attributes:
        checked: number of images read.
        broken: files that cannot be trained on.
        notes: number of images with each unusual property.
        left_out: by folder, the number of other files by suffix or kind.
    """

    checked: int
    broken: tuple[UnusableFile, ...]
    notes: dict[str, int]
    left_out: dict[str, dict[str, int]]


def verify_images(trees: Mapping[Path, SplitTree], *, workers: int) -> VerifyReport:
    """Decode every image of `trees` in `workers` (at least 1) processes.

    Raises:
        TrainerError: a loader process died.
    """
    files = [folder / os.fsdecode(name) for folder, tree in trees.items() for names in tree.images for name in names]
    left_out = {str(folder): dict(tree.left_out) for folder, tree in trees.items() if tree.left_out}
    return _verify(files, workers, left_out)


def verify_pack(folder: Path, *, workers: int) -> VerifyReport:
    """Compare every image of a pack with its checksum, and decode it, in `workers` (at least 1) processes.

    Raises:
        UsageError: it is not a whole pack.
        TrainerError: a loader process died.
    """
    pack = read_pack(folder)
    assert pack is not None  # the caller found its index
    places = [split.place(sample) for split in pack.splits.values() for sample in range(len(split.paths))]
    return _verify(places, workers, {})


def _verify(places: Sequence[ImagePlace], workers: int, left_out: dict[str, dict[str, int]]) -> VerifyReport:
    notes: Counter[str] = Counter()
    broken = []
    for finding in whole_item_loader(_check, places, workers=workers, start_worker=_listen):
        if isinstance(finding, UnusableFile):
            broken.append(finding)
        else:
            notes.update(finding)
    return VerifyReport(len(places), tuple(broken), dict(sorted(notes.items())), left_out)


def _check(place: ImagePlace) -> UnusableFile | Notes:
    """Decode an image in a loader process."""
    os.lseek(_STDERR, 0, os.SEEK_SET)
    os.ftruncate(_STDERR, 0)
    try:
        image = read_image(place)
        decode_content(image)
    except BadImageError as error:
        return UnusableFile(error.path, error.reason)
    warning = os.pread(_STDERR, 4096, 0).decode(errors="replace").split("\n")[0].strip()
    if any(damage in warning for damage in _DAMAGE):
        return UnusableFile(image.path, f"damaged inside: {warning}")
    return _notes(image) + (("decoder warning",) if warning else ())


def _notes(image: ImageContent) -> Notes:
    """Return the unusual properties of a good file, from its header."""
    try:
        with open_image(image) as header:
            kind, mode = str(header.format), header.mode
    except BadImageError:
        return ("header unknown to Pillow",)
    suffix = Path(image.path).suffix
    named = Image.registered_extensions().get(suffix.lower(), kind)
    notes = []
    if kind != named:
        notes.append(f"{kind} named {suffix}")
    if mode == "CMYK":
        notes.append("CMYK")
    if mode in ("1", "L", "I") or mode.startswith("I;16"):
        notes.append("grey")
    return tuple(notes)


def _listen(worker: int) -> None:
    """Turn this process's stderr into a file in memory that `_check` reads after each image."""
    start_worker(worker)
    os.dup2(os.memfd_create("stderr"), _STDERR)
