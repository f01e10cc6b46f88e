"""Text files that a restarted run goes on with: what its checkpoint holds stays, later lines move aside, none is lost.

A run that is killed has written lines about steps that it will take again. Every reader of its files wants each step
once; whoever looks for the reason of a crash wants the lines that were replaced.
"""

import contextlib
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from trainer.records.appender import Appender, Tell
from trainer.run.folder import writing
from trainer.shared.files import flush

Keep = Callable[[bytes], bool]
"""Whether a whole line, without its end, stays."""


class Lines(contextlib.AbstractContextManager["Lines"]):
    """A text file that has every line as soon as it is written, or as soon as its disk takes it."""

    def __init__(self, path: Path, *, fresh: bool, tell: Tell) -> None:
        """Open `path`: as a new file if `fresh`, else to go on after what it has.

        Args:
            tell: told where the file cannot be written, and where it can again.

        Raises:
            TrainerError: it cannot be opened.
        """
        self._path, self._tell = path, tell
        self._file = Appender(path, fresh=fresh, tell=tell)

    def write(self, *lines: str) -> None:
        """Add lines."""
        self._file.write("".join(f"{line}\n" for line in lines).encode())

    def sync(self) -> None:
        """Wait until the disk has every line.

        Raises:
            TrainerError: it does not take them; the line names the file.
        """
        self._file.sync()

    def replace(self, keep: Keep, moved: Callable[[Sequence[bytes]], str], to: Path) -> None:
        """Leave only the lines that `keep` wants, and add what `moved` makes of the others to the file `to`.

        A last line without its end was torn by a crash and goes too. At any moment the file on the disk is the old one
        or the new one, and the lines that go are in the other file before they leave this one.

        Raises:
            TrainerError: one of the two cannot be written; the line names it.
        """
        self._file.sync()
        with writing(self._path):
            lines = self._path.read_bytes().splitlines(keepends=True)
            staying = [line.endswith(b"\n") and keep(line[:-1]) for line in lines]
            going = [line.rstrip(b"\n") for line, stays in zip(lines, staying, strict=True) if not stays]
            if not going:
                return
            with writing(to), to.open("ab") as replaced:
                replaced.write(moved(going).encode())
                replaced.flush()
                os.fsync(replaced.fileno())
            partial = self._path.with_name(f".{self._path.name}.partial")
            with partial.open("wb") as rest:
                rest.writelines(itertools.compress(lines, staying))
                rest.flush()
                os.fsync(rest.fileno())
            partial.replace(self._path)
            flush(self._path.parent)
        self._file.__exit__()
        self._file = Appender(self._path, fresh=False, tell=self._tell)

    def __exit__(self, *_error: object) -> None:
        self._file.__exit__()
