"""Files that grow at their end: they lose and repeat no byte while the disk is full, and a restarted run can continue.

A run can be days old when its disk fills up. Data that cannot be written waits in memory, so a full disk costs a
warning and not the run; a write that was cut short continues at the byte where it was cut.

A killed run has written lines about steps that it will take again. Readers want each step once, and the reader who
looks for the reason of a crash wants the replaced lines: `replace` moves them to another file.
"""

import contextlib
import itertools
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from trainer.shared.files import fsync, replacing, writing

OnNote = Callable[[str], None]
"""Receives a line for the user."""
CheckOwner = Callable[[], None]
"""Raises a TrainerError if the folder does not belong to this run any more."""


def no_owner() -> None:
    """Pass: for a folder that no other process can take."""


class AppendFile(contextlib.AbstractContextManager["AppendFile"]):
    """One file with this process as its only writer. Threads may write and sync at the same time.

    Bytes stay in memory until a `sync` has brought them to the disk: a file server can report a full disk as late as
    then, when the system has already forgotten the data. Records take a few hundred bytes a step, so memory needs no
    other limit than the length of the run.
    """

    def __init__(self, path: Path, *, fresh: bool, on_note: OnNote, check_owner: CheckOwner = no_owner) -> None:
        """Open `path`: as a new file if `fresh`, else to continue after its content.

        A file that goes on becomes a copy of itself: an earlier owner of the folder that wakes up has the old one open.

        Args:
            on_note: Called once when the file cannot be written and once when it can again, perhaps from another
                thread.
            check_owner: Called before each write.

        Raises:
            TrainerError: The file cannot be opened.
        """
        self.path = path
        self._on_note = on_note
        self._check_owner = check_owner
        self._lock = threading.Lock()
        self._syncing = threading.Lock()
        """One sync at a time: two would both count the same bytes as written to the disk."""
        check_owner()
        with writing(path):
            if not fresh and path.exists():
                with _rewriting(path, check_owner) as partial:
                    shutil.copyfile(path, partial)
            self._open(os.O_EXCL if fresh else 0)
        self._recent = bytearray()
        """The bytes after the first `_begin` bytes, which are on the disk."""
        self._taken = 0
        """How many of these bytes the system has taken."""
        self._failing = False

    def write(self, data: bytes) -> None:
        """Add bytes; each later call tries to write the bytes that cannot be written now.

        Raises:
            TrainerError: The folder belongs to another run by now; nothing is written.
        """
        with self._lock:
            self._recent += data
            try:
                self._push()
            except OSError as error:
                if not self._failing:
                    self._on_note(
                        f"{self.path}: cannot be written: {error.strerror or error}; its lines wait in memory"
                    )
                self._failing = True

    def write_lines(self, *lines: str) -> None:
        """Add lines."""
        self.write("".join(f"{line}\n" for line in lines).encode())

    @property
    def is_written(self) -> bool:
        """Whether the system has taken everything: then it outlives this process, though not yet a power failure."""
        with self._lock:
            return self._taken == len(self._recent)

    def sync(self) -> None:
        """Wait until the disk has everything that was written before the call; others may write meanwhile.

        Raises:
            TrainerError: The disk does not take it; the bytes stay in memory.
        """
        with writing(self.path), self._syncing:
            with self._lock:
                self._push()
                taken = self._taken
            try:
                os.fsync(self._file)
            except OSError:
                with self._lock:
                    self._taken = 0
                raise
            with self._lock:
                self._begin += taken
                self._taken -= taken
                del self._recent[:taken]

    def replace(self, stays: Callable[[bytes], bool], to: Path, moved: Callable[[bytes], bytes] = bytes) -> None:
        """Leave only the lines for which `stays` is true; add each other line, as `moved` writes it, to the file `to`.

        A last line without its end was torn by a crash and goes too. At any moment the file on the disk is the old one
        or the new one. The lines that go are in the other file before they leave this one. No thread may write
        meanwhile.

        Raises:
            TrainerError: One of the two files cannot be written; the line names it.
        """
        self.sync()
        with writing(self.path):
            lines = self.path.read_bytes().splitlines(keepends=True)
            staying = [line.endswith(b"\n") and stays(line[:-1]) for line in lines]
            if all(staying):
                return
            self._check_owner()
            with writing(to):
                with to.open("ab") as replaced:
                    going = (line.rstrip(b"\n") for line, stay in zip(lines, staying, strict=True) if not stay)
                    replaced.writelines(moved(line) + b"\n" for line in going)
                fsync(to)
            with _rewriting(self.path, self._check_owner) as partial:
                partial.write_bytes(b"".join(itertools.compress(lines, staying)))
            old = self._file
            self._open()
            os.close(old)

    def _open(self, flags: int = 0) -> None:
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | flags, 0o666)
        self._begin = os.fstat(self._file).st_size

    def _push(self) -> None:
        if self._taken < len(self._recent):
            self._check_owner()
        while self._taken < len(self._recent):
            with memoryview(self._recent)[self._taken :] as rest:
                self._taken += os.pwrite(self._file, rest, self._begin + self._taken)
        if self._failing:
            self._failing = False
            self._on_note(f"{self.path}: is written again, and lacks nothing")

    def __exit__(self, *_error: object) -> None:
        self.write(b"")
        with self._syncing, self._lock, contextlib.suppress(OSError):
            # A late sync, or a second exit, must not find the next file that gets this number.
            file, self._file = self._file, -1
            os.close(file)


@contextlib.contextmanager
def _rewriting(path: Path, check_owner: CheckOwner) -> Iterator[Path]:
    """Yield a hidden path for the new content of `path`, and look at the owner once more before it takes effect."""
    with replacing(path) as partial:
        # An earlier owner that wakes up must not go on with a half-written file that is renamed here.
        partial.unlink(missing_ok=True)
        yield partial
        check_owner()
