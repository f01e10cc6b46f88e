"""Unpack ILSVRC2012's training images, a tar of 1,000 tars, into one folder per class.

The 138 GB are read in place: no inner tar is unpacked to the disk first. Each class is checked before it is written.
"""

import contextlib
import re
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO

from trainer.data.archives import ILSVRC_CLASSES, check_source, extract, members, open_tar, refuse_other_images
from trainer.data.prepare import SortedImages
from trainer.shared.errors import TrainerError, UsageError
from trainer.shared.files import reading

TRAINING_IMAGES = 1_281_167

_CLASS = re.compile(r"(n\d{8})\.tar")
_IMAGE = re.compile(r"(n\d{8})_\d+\.JPEG")


def is_training_source(source: Path) -> bool:
    """Return whether `source` is a tar of one tar per class, or a folder with such tars.

    Raises:
        UsageError: it is missing, a pipe, or cannot be read.
    """
    check_source(source)
    with reading(source):
        if source.is_dir():
            return any(_CLASS.fullmatch(entry.name) for entry in source.iterdir())
        if not tarfile.is_tarfile(source):
            return False
    with open_tar(source, str(source)) as archive:
        names = (Path(member.name).name for member in archive if member.isfile())
        return _CLASS.fullmatch(next((name for name in names if not name.startswith(".")), "")) is not None


def sort_training_images(
    source: Path,
    to: Path,
    *,
    images: int | None = TRAINING_IMAGES,
    classes: int = ILSVRC_CLASSES,
    progress: Callable[[int], None] = lambda _done: None,
) -> SortedImages:
    """Put each image of `source` at `to`/train/<wnid>/<name>; whole images that are there already stay as they are.

    Args:
        source: the tar of tars, or a folder with the inner tars.
        images: how many images the result must hold; None accepts any part.
        classes: how many classes the result must hold.
        progress: called after each image with the number of images done.

    Raises:
        UsageError: `source` cannot be used; nothing was written, or only classes before the damaged one.
        TrainerError: a file cannot be written, or the result is not complete.
    """
    split = to / "train"
    refuse_other_images(split, _class_of, allow_unknown=images is None)
    done = written = 0
    with _inner_tars(source) as tars:
        if images is not None and len(tars) != classes:
            raise UsageError(
                f"{source}: holds {len(tars):,} classes; ILSVRC2012 has {classes:,} (--allow-partial accepts a part)"
            )
        for wnid, open_inner in tars.items():
            name = f"{source}: {wnid}.tar"
            with open_inner() as content, open_tar(content, name) as archive:
                files = members(archive, re.compile(rf"{wnid}_\d+\.JPEG"), name=name, kind=f"an image of {wnid}")
                for image, member in files.items():
                    written += extract(archive, member, split / wnid / image)
                    done += 1
                    progress(done)
    if images is not None and done != images:
        raise TrainerError(
            f"{split}: {source} holds {done:,} images; ILSVRC2012 has {images:,}: fetch it again"
            " (--allow-partial accepts a part)"
        )
    return SortedImages(written, done - written, 0)


def _class_of(name: str) -> str | None:
    match = _IMAGE.fullmatch(name)
    return match and match[1]


@contextlib.contextmanager
def _inner_tars(source: Path) -> Iterator[dict[str, Callable[[], IO[bytes]]]]:
    """Yield a function for each class, sorted, that opens its tar."""
    if source.is_dir():
        with reading(source):
            paths = sorted(path for path in source.iterdir() if _CLASS.fullmatch(path.name))
        yield {path.stem: partial(_open_file, path) for path in paths}
        return
    with open_tar(source, str(source), mode="r:") as archive:
        files = members(archive, _CLASS, name=str(source), kind="the tar of a class, such as n01440764.tar")
        yield {Path(name).stem: partial(_extract_file, archive, member) for name, member in sorted(files.items())}


def _open_file(path: Path) -> IO[bytes]:
    return path.open("rb")


def _extract_file(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = archive.extractfile(member)
    assert content is not None  # it is a file
    return content
