"""Sort ILSVRC2012's 50,000 validation images into one folder per class, as the seed's valprep script did.

The images come as one tar or one flat folder without their classes. Unlike a script of 50,000 `mv` lines, this can
be killed and run again. It checks its input before it writes, and its result afterwards.
"""

import errno
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainer.data.archives import (
    ILSVRC_CLASSES,
    RUN_AGAIN,
    check_source,
    extract,
    is_there,
    members,
    open_tar,
    refuse_other_images,
    write_image,
)
from trainer.shared.errors import TrainerError, UsageError
from trainer.shared.files import read_file, reading, writing

Transfer = Literal["copy", "link", "move"]

VALIDATION_IMAGES = 50_000

_IMAGE = re.compile(r"ILSVRC2012_val_\d{8}\.JPEG")
# A line of valprep.sh (`mv ILSVRC2012_val_00000001.JPEG n01751748/`) or of Kaggle's LOC_val_solution.csv.
_NAMED_LABEL = re.compile(r"(ILSVRC2012_val_\d{8})(?:\.JPEG)?[\s,]+(n\d{8})\b")
_WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class SortedImages:
    """How many images were written now, were there already, and are missing although `labels` names them."""

    written: int
    present: int
    missing: int


def read_labels(path: Path) -> dict[str, str]:
    """Return the class (wnid) of each validation image, by file name.

    Reads valprep.sh (as text; it is never run), Kaggle's LOC_val_solution.csv, or one wnid per line, the first for
    ILSVRC2012_val_00000001.JPEG.

    Raises:
        UsageError: the file cannot be read, has another format, or gives an image two classes.
    """
    try:
        text = read_file(path).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UsageError(f"--labels {path}: cannot be read: {reason}") from None
    pairs = _NAMED_LABEL.findall(text)
    if pairs:
        labels: dict[str, str] = {}
        for stem, wnid in pairs:
            if labels.setdefault(f"{stem}.JPEG", wnid) != wnid:
                raise UsageError(f"--labels {path}: gives {stem}.JPEG two classes, {labels[f'{stem}.JPEG']} and {wnid}")
        return labels
    lines = text.split()
    strange = next((number for number, line in enumerate(lines, 1) if not _WNID.fullmatch(line)), None)
    if strange is not None or not lines:
        fault = f"line {strange} is {lines[strange - 1][:40]!r}" if strange else "it is empty"
        raise UsageError(
            f"--labels {path}: {fault}; give valprep.sh, LOC_val_solution.csv,"
            " or a file with one wnid (like n01751748) per line"
        )
    return {f"ILSVRC2012_val_{number:08d}.JPEG": wnid for number, wnid in enumerate(lines, 1)}


def sort_validation_images(
    source: Path,
    to: Path,
    labels: Mapping[str, str],
    *,
    transfer: Transfer = "copy",
    images: int | None = VALIDATION_IMAGES,
    classes: int = ILSVRC_CLASSES,
    progress: Callable[[int], None] = lambda _done: None,
) -> SortedImages:
    """Put each image of `source` at `to`/val/<wnid>/<name>; whole images that are there already stay as they are.

    Args:
        source: the tar, or a folder that holds the images.
        transfer: how a folder's images get there; a tar's are always copied.
        images: how many images `labels` must name and the result must hold; None accepts any part.
        classes: number of classes, which must have equally many images.
        progress: called after each image with the number of images done.

    Raises:
        UsageError: `source` or `labels` cannot be used; nothing was written.
        TrainerError: a file cannot be written, or the result is not complete.
    """
    sizes = Counter(labels.values())
    complete = len(labels) == images and len(sizes) == classes and set(sizes.values()) == {images // classes}
    if images is not None and not complete:
        raise UsageError(
            f"--labels: {len(labels):,} images in {len(sizes):,} classes; ILSVRC2012 has {images:,} in {classes:,},"
            f" {images // classes} each (--allow-partial accepts a part)"
        )
    check_source(source)
    refuse_other_images(to / "val", labels.get, allow_unknown=images is None)
    if source.is_dir():
        written = _from_folder(source, to, labels, transfer, progress)
    else:
        if transfer != "copy":
            raise UsageError(f"--transfer {transfer}: {source} is a tar, its images can only be copied")
        written = _from_tar(source, to, labels, progress)
    missing = [name for name in labels if not _target(to, labels, name).is_file()]
    if missing and images is not None:
        raise TrainerError(
            f"{to / 'val'}: {len(missing):,} of {len(labels):,} images are missing, the first is {missing[0]};"
            f" {source} does not hold them (--allow-partial accepts that)"
        )
    return SortedImages(written, len(labels) - len(missing) - written, len(missing))


def _target(to: Path, labels: Mapping[str, str], name: str) -> Path:
    return to / "val" / labels[name] / name


def _from_folder(
    source: Path, to: Path, labels: Mapping[str, str], transfer: Transfer, progress: Callable[[int], None]
) -> int:
    with reading(source):
        names = sorted(entry.name for entry in source.iterdir() if _IMAGE.fullmatch(entry.name))
    if not names and not (to / "val").is_dir():
        raise UsageError(f"{source}: no ILSVRC2012_val_*.JPEG in it; give the folder of the validation images")
    _refuse_unlabelled(names, labels, source)
    written = 0
    for done, name in enumerate(names, 1):
        written += _transfer(source / name, _target(to, labels, name), transfer)
        progress(done)
    return written


def _transfer(image: Path, target: Path, transfer: Transfer) -> bool:
    """Put one file in its place; False if it is there, whole, already."""
    with reading(image):
        if is_there(target, image.stat().st_size):
            return False
        content = image.open("rb")
    with content:
        if transfer == "copy":
            write_image(target, content)
        else:
            _link_or_move(image, target, transfer)
    return True


def _link_or_move(image: Path, target: Path, transfer: Transfer) -> None:
    with writing(target, RUN_AGAIN):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if transfer == "link":
                target.unlink(missing_ok=True)
                target.hardlink_to(image.resolve())
            else:
                image.replace(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            raise UsageError(f"--transfer {transfer}: {image} is on another disk than {target.parent}; copy") from None


def _from_tar(source: Path, to: Path, labels: Mapping[str, str], progress: Callable[[int], None]) -> int:
    written = 0
    with open_tar(source, str(source)) as archive:
        files = members(archive, _IMAGE, name=str(source), kind="a validation image")
        _refuse_unlabelled(list(files), labels, source)
        for done, (name, member) in enumerate(files.items(), 1):
            written += extract(archive, member, _target(to, labels, name))
            progress(done)
    return written


def _refuse_unlabelled(names: list[str], labels: Mapping[str, str], source: Path) -> None:
    strange = [name for name in names if name not in labels]
    if strange:
        raise UsageError(
            f"{source}: --labels names no class for {strange[0]}"
            + (f" and {len(strange) - 1:,} more images" if len(strange) > 1 else "")
        )
