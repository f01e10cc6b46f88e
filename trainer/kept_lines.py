"""Text files that a restarted run goes on with: what its checkpoint holds stays, later lines move aside, none is lost.

A run that is killed has written lines about steps that it will take again. Every reader of its files wants each step
once; whoever looks for the reason of a crash wants the lines that were replaced.
"""

import contextlib
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from trainer.durable import flush
from trainer.run_folder import writing

Keep = Callable[[bytes], bool]
"""Whether a whole line, without its end, stays."""


class Lines(contextlib.AbstractContextManager["Lines"]):
    """A text file that has every line as soon as it is written.

    Raises:
        TrainerError: from each method, if the file cannot be written; the line names it.
    """

    def __init__(self, path: Path, *, fresh: bool) -> None:
        """Open `path`: as a new file if `fresh`, else to go on after what it has."""
        self._path = path
        with writing(path):
            self._file = path.open("xb" if fresh else "ab")

    def write(self, *lines: str) -> None:
        """Add lines."""
        with writing(self._path):
            self._file.write("".join(f"{line}\n" for line in lines).encode())
            self._file.flush()

    def sync(self) -> None:
        """Wait until the disk has every line."""
        with writing(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def replace(self, keep: Keep, moved: Callable[[Sequence[bytes]], str], to: Path) -> None:
        """Leave only the lines that `keep` wants, and add what `moved` makes of the others to the file `to`.

        A last line without its end was torn by a crash and goes too. At any moment the file on the disk is the old one
        or the new one, and the lines that go are in the other file before they leave this one.
        """
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
            self._file.close()
            self._file = self._path.open("ab")

    def __exit__(self, *_error: object) -> None:
        # A full disk has been reported by the write that met it; closing meets it again.
        with contextlib.suppress(OSError):
            self._file.close()
