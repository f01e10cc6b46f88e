"""Put images from tars into class folders so that a killed command can be repeated: whole files, each in one class."""

import contextlib
import io
import os
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Literal

from trainer.data.tree import read_split
from trainer.shared.errors import UsageError
from trainer.shared.files import reading, replacing, writing

ILSVRC_CLASSES = 1_000
RUN_AGAIN = "free space or permit it, then run the same command again: it continues where it stopped"


def check_source(source: Path) -> None:
    """Refuse what is neither a file nor a folder.

    Raises:
        UsageError: it is missing, cannot be reached, or is a pipe.
    """
    with reading(source):
        if source.is_dir() or source.is_file():
            return
        fault = "a pipe or device, which cannot be read twice" if source.exists() else "no such file or folder"
    raise UsageError(
        f"{source}: {fault}; give ILSVRC2012_img_val.tar, ILSVRC2012_img_train.tar, or a folder with the content of one"
    )


@contextlib.contextmanager
def open_tar(source: Path | IO[bytes], name: str, *, mode: Literal["r:", "r:*"] = "r:*") -> Iterator[tarfile.TarFile]:
    """Open a tar for the context.

    Args:
        source: the file.
        name: of the tar, for errors.
        mode: `r:` refuses a compressed tar, in which each step back would read it from the start.

    Raises:
        UsageError: it is not a whole tar; also if that shows within the context.
    """
    try:
        with (
            tarfile.open(source, mode) if isinstance(source, Path) else tarfile.open(fileobj=source, mode=mode)
        ) as archive:
            yield archive
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        kind = "a whole tar file" if mode == "r:*" else "a whole tar file without compression"
        raise UsageError(f"{name}: not {kind}: {str(error).splitlines()[0].rstrip(':')}; fetch it again") from None


def members(archive: tarfile.TarFile, pattern: re.Pattern[str], *, name: str, kind: str) -> dict[str, tarfile.TarInfo]:
    """Return the files of a tar by their names, without folders; all of them are read, and so checked, before any use.

    Hidden entries, which macOS adds, are left out. As for `tar x`, the last of several entries with one name counts.

    Args:
        archive: an open tar.
        pattern: of the file names to expect.
        name: of the tar, for errors.
        kind: what the tar must hold, for errors.

    Raises:
        UsageError: another file is in it, or two of different sizes have one name.
    """
    files: dict[str, tarfile.TarInfo] = {}
    for member in archive:
        parts = Path(member.name).parts
        if member.isdir() or (parts and parts[-1].startswith(".")):
            continue
        if not member.isfile() or ".." in parts or Path(member.name).is_absolute() or not pattern.fullmatch(parts[-1]):
            raise UsageError(f"{name}: holds {member.name!r}, which is not {kind}; give the published tar")
        if files.setdefault(parts[-1], member).size != member.size:
            raise UsageError(f"{name}: holds {parts[-1]} twice, with different sizes; give the published tar")
        files[parts[-1]] = member
    return files


def extract(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> bool:
    """Write a file of a tar to `target`; return False if it is there, whole, already.

    Raises:
        TrainerError: the disk is full, or the folder cannot be written.
    """
    content = archive.extractfile(member)
    if content is None or is_there(target, member.size):
        return False
    write_image(target, content)
    return True


def write_image(path: Path, content: bytes | IO[bytes]) -> None:
    """Write an image and create its folders. A file that exists is complete, so that a killed command can be repeated.

    Raises:
        TrainerError: the disk is full, or the folder cannot be written.
    """
    with writing(path, RUN_AGAIN):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Its hidden name keeps the rest of a killed run out of every index. 50,000 waits for the disk would take long.
        with replacing(path, sync=False) as partial, partial.open("wb") as file:
            shutil.copyfileobj(io.BytesIO(content) if isinstance(content, bytes) else content, file, 1 << 20)


def is_there(target: Path, size: int) -> bool:
    """Return whether a file of `size` bytes is at `target`."""
    try:
        return target.stat().st_size == size
    except OSError:
        return False


def refuse_other_images(split: Path, class_of: Callable[[str], str | None], *, allow_unknown: bool) -> None:
    """Refuse a folder with images in other classes than `class_of` gives their names, or with unknown images.

    Raises:
        UsageError: the folder cannot be read, or has such an image.
    """
    with reading(split):
        tree = read_split(split) if split.is_dir() else None
    for path in (path for images in tree.images for path in images) if tree else ():
        folder, _, name = os.fsdecode(path).rpartition("/")
        wanted = class_of(name)
        if wanted is None and allow_unknown:
            continue
        if wanted != folder:
            fault = "is not one of these images" if wanted is None else f"belongs to class {wanted} now"
            raise UsageError(f"{split / folder / name}: {fault}; give --to an empty folder, or delete {split}")
