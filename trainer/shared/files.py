"""Files that are whole or not there at all, whatever kills their writer, and one clear line for a failed read or write.

Both programs write through `replacing`, so the order (write, fsync, rename, fsync of the folder) stands in one place.
"""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from trainer.shared.errors import TrainerError, UsageError

NOT_REGULAR = "a pipe or device, not a regular file"
_DESCRIPTORS = ("/dev/fd/", "/proc/self/fd/")
NO_ANSWER = frozenset(
    {
        errno.EIO,
        errno.ETIMEDOUT,
        errno.ENOTCONN,
        errno.ECONNRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
    }
)
"""Errors of a file server that does not answer."""
PASSING = NO_ANSWER | {errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""Errors that can pass, with the same path: no setting of the user is wrong."""
AGAIN = "start the run again"
"""The next step after such an error."""


def fsync(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on the disk.

    Raises:
        OSError: The system cannot write them there.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def read_file(path: Path) -> bytes:
    """Return the content of a file that the user names, such as a profile or a kubeconfig.

    A pipe or a device can wait for ever or never end. Only one that the user hands over by its number is read, as
    `<(command)` of the shell does, or by a name that stands for it.

    Raises:
        OSError: It cannot be read, or is not a regular file.
    """
    is_handed_over = str(path).startswith(_DESCRIPTORS) or str(path) in (os.devnull, "/dev/stdin")
    flags = 0 if is_handed_over else os.O_NONBLOCK
    with open(path, "rb", opener=lambda name, mode: os.open(name, mode | flags)) as file:
        if not is_handed_over and not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, NOT_REGULAR, str(path))
        return file.read()


def why_no_file(path: Path) -> str:
    """Return why a path is not a regular file."""
    return "no such file" if not path.exists() else "a folder, not a file" if path.is_dir() else NOT_REGULAR


def why_no_folder(path: Path) -> str:
    """Return why a path is not a folder."""
    return "not a folder" if path.exists() else "no such folder"


def text_if_readable(path: Path) -> str:
    """Return the text of a file, or an empty text if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def with_home(path: Path) -> Path:
    """Return the path with the folder that `~` or `~USER` stands for; like a shell, leave it where that is unknown.

    A user id without an entry in /etc/passwd, and without HOME, has no such folder.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111  # Path.expanduser raises an error then


def own_partial(path: Path) -> Path:
    """Return a hidden path for `replacing` that no other process uses; one that is killed leaves it behind."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


@contextlib.contextmanager
def replacing(path: Path, *, partial: Path | None = None, sync: bool = True, mode: int | None = None) -> Iterator[Path]:
    """Yield a hidden path to write to; the file written there becomes `path` when the context ends without an error.

    No reader ever sees half of a file: before and after an error, `path` is the old file or the new one.

    Args:
        path: The file to create or replace; its folder exists.
        partial: The hidden path, on the same file system. Give one with a name that no other process uses if several
            can write `path` at once, such as `own_partial`. The default is `.NAME.partial`: the next writer replaces a
            killed one's file.
        sync: Wait until the disk has the file. Without it, a power failure can leave an empty or damaged file.
        mode: Of the file; the default is the mode that the user's umask asks for.

    Raises:
        OSError: The disk is full, or the user has no permission to write.
    """
    partial = partial or path.with_name(f".{path.name}.partial")
    try:
        yield partial
        _set_mode(partial, _usual_mode() if mode is None else mode)
        if sync:
            fsync(partial)
        partial.replace(path)
        if sync:
            fsync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def _usual_mode() -> int | None:
    """Return the mode that the user's umask asks for: some libraries write files for their owner only."""
    umask = re.search(r"^Umask:\s*([0-7]+)$", text_if_readable(Path("/proc/self/status")), re.MULTILINE)
    return 0o666 & ~int(umask[1], 8) if umask else None


def _set_mode(path: Path, mode: int | None) -> None:
    if mode is not None and path.stat().st_mode & 0o777 != mode:
        with contextlib.suppress(PermissionError):  # some file systems have one mode for all files
            path.chmod(mode)


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Let one process of this machine at a time read and change files of a folder; the others wait.

    A file system without locks lets all of them in.

    Raises:
        OSError: The folder cannot be opened.
    """
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def utf8_name(path: Path) -> Iterator[str]:
    """Yield a name of a file for a library that refuses bytes that are not UTF-8: the path, or one of this process.

    Raises:
        OSError: The file cannot be opened.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        yield str(path)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn a failed read in this context into one line for the user; even `is_dir` can fail.

    Raises:
        UsageError: `path`, or a file or folder in it, cannot be read.
        TrainerError: The same, and it may pass: the platform must try again.
    """
    try:
        yield
    except OSError as error:
        if error.errno in PASSING:
            raise TrainerError(f"{error.filename or path}: cannot be read: {error.strerror}; {AGAIN}") from error
        advice = "check its permissions" if isinstance(error, PermissionError) else "give another path"
        raise UsageError(f"{error.filename or path}: cannot be read: {error.strerror}; {advice}") from None


@contextlib.contextmanager
def writing(path: Path, advice: str = "free space, or choose another --output") -> Iterator[None]:
    """Turn a failed write in this context into one line for the user, which ends with `advice`.

    Raises:
        TrainerError: `path` cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise TrainerError(f"{path}: cannot be written: {error.strerror or error}; {advice}") from error
