"""Write a data file so that it is there whole or not at all, whatever kills the writer; say what cannot be read.

Commands that write data sets are resumed by looking at which files exist, so a file that exists must be complete.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from trainer.shared.errors import TrainerError, UsageError


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say in one line what cannot be read, where that turns out in this context; even `is_dir` may raise.

    Raises:
        UsageError: `path`, or a file or folder in it, cannot be read.
    """
    try:
        yield
    except OSError as error:
        raise UsageError(f"{error.filename or path}: cannot be read: {error.strerror}; check its permissions") from None


def write_atomically(path: Path, content: bytes | IO[bytes]) -> None:
    """Write `content` to `path`, creating its folders; the file appears under its name when it is complete.

    Raises:
        TrainerError: the disk is full, or the folder cannot be written.
    """
    # Hidden, so that no index takes the rest of a killed run for an image.
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                if isinstance(content, bytes):
                    file.write(content)
                else:
                    shutil.copyfileobj(content, file, 1 << 20)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise cannot_write(path, error) from None


def cannot_write(path: Path, error: OSError) -> TrainerError:
    """One line for a failed write."""
    return TrainerError(
        f"{path}: cannot be written: {error.strerror or error};"
        " make room or permit it, then run the same command again: it goes on where it stopped"
    )
