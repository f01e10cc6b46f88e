"""Copy a run's files to a folder of this machine: whole, checked by hash, and continued after any interruption.

A file gets its name when its hash is right; until then it is `.NAME.partial`, from whose end the next try goes on. The
folder remembers whose files it has, so that two runs never mix.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

from launcher.errors import ChangedError, ConflictError, LauncherError, UnreachableError
from launcher.jobs import Channel, Jobs, JobState
from launcher.results.file_client import FileClient, RunFile
from trainer.shared.files import fsync, replacing

_MARK = ".pnas-fetch.json"
_BLOCK = 1 << 20
_TRIES = 3
"""Channels in a row that deliver no byte before the copy gives up."""


@dataclass
class Copied:
    """The outcome of a copy.

    Attributes:
        files: the paths that were copied now; `unchanged` counts the others, which were there already.
        size: the bytes that came.
        problems: files that are not there, and why.
    """

    files: list[str] = field(default_factory=list)
    size: int = 0
    unchanged: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass
class RunCopy:
    """The copy of a run.

    Attributes:
        open_channel: opens a way to the files; it is opened again after a cut.
        target: the folder that gets them.
        source: names the run.
        select: says which paths to copy.
        on_note: is called with lines for the user.
    """

    open_channel: Callable[[], AbstractContextManager[Channel]]
    target: Path
    source: str
    select: Callable[[str], bool]
    on_note: Callable[[str], None]
    copied: Copied = field(default_factory=Copied)
    _done: set[str] = field(default_factory=set)

    def run(self) -> Copied:
        """Copy the files that are not there yet.

        Raises:
            ConflictError: the folder has other files, or another launcher copies to it now.
            LauncherError: the disk is full, or a file cannot be written; what is copied stays.
            UnreachableError: the files cannot be reached; what is copied stays.
        """
        with _own_folder(self.target, self.source):
            failures = 0
            while True:
                before = self.copied.size, len(self._done)
                try:
                    with self.open_channel() as channel:
                        self._copy_all(FileClient(channel))
                except UnreachableError as error:
                    failures = 0 if (self.copied.size, len(self._done)) != before else failures + 1
                    if not error.transient or failures >= _TRIES:
                        raise
                    self.on_note(f"{error}: trying again")
                else:
                    return self.copied

    def _copy_all(self, client: FileClient) -> None:
        files, unreadable = client.list()
        unread = [f"{path}: cannot be read in its place" for path in unreadable]
        self.copied.problems += [text for text in unread if text not in self.copied.problems]
        for file in files:
            if self.select(file.path) and file.path not in self._done:
                try:
                    self._copy(client, file)
                except ChangedError as error:
                    self.copied.problems.append(str(error))
                self._done.add(file.path)

    def _copy(self, client: FileClient, file: RunFile) -> None:
        path = self.target / file.path
        with _writing_to(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_file() and path.stat().st_size == file.size and _digest(path) == client.digest(file):
                self.copied.unchanged += 1
                return
        begun = path.with_name(f".{path.name}.partial")
        # The begin of an interrupted copy can be a file's that was replaced since.
        if self._write(client, file, begun, path) or self._write(client, file, begun, path):
            self.copied.files.append(file.path)
            return
        raise ChangedError(f"{file.path}: was replaced while it was copied; type the same again")

    def _write(self, client: FileClient, file: RunFile, begun: Path, path: Path) -> bool:
        """Complete a partial file, and give it its name; remove it and return False if its hash is wrong."""
        with _writing_to(path):
            with open(begun, "r+b", opener=_create_no_link) as output:
                try:
                    right = self._append(output, client, file)
                except ChangedError:
                    begun.unlink(missing_ok=True)
                    raise
                output.flush()
                os.fsync(output.fileno())
            if not right:
                begun.unlink()
                return False
            begun.replace(path)
            fsync(path.parent)
        return True

    def _append(self, output: BinaryIO, client: FileClient, file: RunFile) -> bool:
        start = min(output.seek(0, os.SEEK_END), file.size)
        digest = _digest_of(output, start)
        output.truncate(start)
        for block in client.read(file, start):
            if isinstance(block, str):
                return block == digest.hexdigest()
            digest.update(block)
            output.write(block)
            self.copied.size += len(block)
        return False


def copy_of(
    jobs: Jobs, state: JobState, target: Path, select: Callable[[str], bool], on_note: Callable[[str], None]
) -> RunCopy:
    """Return the copy of a job's run to a folder."""
    source = f"{state.ref.name} in {state.output}, {jobs.address}"
    return RunCopy(partial(jobs.open_files, state, on_note=on_note), target, source, select, on_note)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return _digest_of(file, path.stat().st_size).hexdigest()


def _digest_of(file: BinaryIO, count: int) -> "hashlib._Hash":
    """Return the SHA-256 of the first bytes of a file, which is then behind them."""
    digest = hashlib.sha256()
    file.seek(0)
    while count > 0 and (block := file.read(min(_BLOCK, count))):
        digest.update(block)
        count -= len(block)
    return digest


def _create_no_link(path: str, _flags: int) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)


@contextmanager
def _writing_to(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LauncherError(
            f"{path}: cannot be written: {error.strerror}; free space or choose another --to, and type the same again: "
            "a copy goes on where it ended"
        ) from error


@contextmanager
def _own_folder(folder: Path, source: str) -> Iterator[None]:
    """Make the folder, or check that it has the same run's files, and keep other launchers out of it.

    Raises:
        ConflictError: it has other files, or another launcher copies to it.
        LauncherError: it cannot be made.
    """
    with _writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConflictError(f"{folder}: another launcher copies a run there; wait for its end") from error
        with _writing_to(folder):
            _mark(folder, source)
        yield
    finally:
        os.close(lock)


def _mark(folder: Path, source: str) -> None:
    mark = folder / _MARK
    try:
        owner = json.loads(mark.read_text(encoding="utf-8")).get("source")
    except FileNotFoundError:
        owner = source if not any(path.name != f".{_MARK}.partial" for path in folder.iterdir()) else None
    except (ValueError, AttributeError):
        owner = None
    if owner != source:
        whose = "is not empty" if owner is None else f"has the files of {owner}"
        raise ConflictError(f"{folder}: {whose}; choose another folder by --to")
    if not mark.exists():
        with replacing(mark) as written:
            written.write_text(json.dumps({"source": source}), encoding="utf-8")
