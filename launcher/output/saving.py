"""One file per device of a followed log: `rank-3.log`, `node-0.log`, and `untagged.log` for lines without a tag.

Lines are written as the trainer wrote them, numbers included, and appended: what an earlier follower saved stays.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from launcher.errors import RequestError
from launcher.output.lines import Gap, Line


class Files:
    """The files in one folder, opened when their device speaks for the first time. A context: its end closes them.

    Raises:
        RequestError: the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, BinaryIO] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(f"--save {folder}: cannot be made: {error.strerror}; choose another folder") from error

    def write(self, items: Sequence[Line | Gap]) -> None:
        """Append each line to its device's file; what is missing is written where it is missing."""
        for item in items:
            source, line = (
                (item.source, f"--- {item} ---".encode()) if isinstance(item, Gap) else (item.writer.source, item.raw)
            )
            with _named(file := self._file(source)):
                file.write(line + b"\n")
        for file in self._files.values():
            with _named(file):
                file.flush()

    def _file(self, source: str) -> BinaryIO:
        if source not in self._files:
            kind, _, rest = source.partition(" ")
            name = f"{kind}-{rest.partition(' ')[0]}" if source else "untagged"
            self._files[source] = (self._folder / f"{name}.log").open("ab")
        return self._files[source]

    def __enter__(self) -> "Files":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for file in self._files.values():
            # What could not be written was told when it was tried.
            with suppress(OSError) if kind is not None else _named(file):
                file.close()


@contextmanager
def _named(file: BinaryIO) -> Iterator[None]:
    """A full disk does not say of which file it is."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, file.name) from error
