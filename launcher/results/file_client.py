"""The files of a run, wherever it is: asks `file_server`, which runs next to them, through a channel."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from launcher.errors import ChangedError, LauncherError, UnreachableError
from launcher.jobs import Channel
from launcher.results import file_server

_LONGEST_LINE = 1 << 26
_LONGEST_NAME = 255


def server_command(folder: Path, python: str) -> list[str]:
    """Return the command that serves a folder's files; the program is in it, because the image need not have it."""
    return [python, "-c", Path(file_server.__file__).read_text(encoding="utf-8"), str(folder)]


class RunFile(NamedTuple):
    """A file; its path is relative to the run's folder."""

    path: str
    size: int


class FileClient:
    """Reads files through a channel. After an error but ChangedError, only a new client can go on."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._rest = b""

    def list(self) -> tuple[list[RunFile], list[str]]:
        """Return all regular files, and the folders that cannot be read.

        Raises:
            LauncherError: the folder itself cannot be read.
            UnreachableError: there was no answer.
        """
        answer = self._ask({"list": True})
        files, unreadable = answer.get("files"), answer.get("unreadable")
        if not isinstance(files, list) or not isinstance(unreadable, list) or not all(map(_is_file, files)):
            raise self._no_answer()
        return [RunFile(*file) for file in files], [str(path) for path in unreadable]

    def digest(self, file: RunFile) -> str:
        """Return the SHA-256 of a file's first `file.size` bytes, in hexadecimal.

        Raises:
            ChangedError: the file cannot be read, or was removed.
        """
        return str(self._ask({"hash": file.path, "to": file.size}, of=file).get("sha256"))

    def read(self, file: RunFile, start: int) -> Iterator[bytes | str]:
        """Yield the bytes of a file from `start` to `file.size`, and at the end the SHA-256 of all its bytes.

        Raises:
            ChangedError: the file has become shorter, cannot be read, or was removed.
            UnreachableError: the channel was cut.
        """
        left = self._ask({"read": file.path, "from": start, "to": file.size}, of=file).get("bytes")
        if left == -1:
            raise ChangedError(f"{file.path}: became shorter while it was copied; type the same again")
        if left != file.size - start:
            raise self._no_answer()
        while left > 0:
            block = self._rest or self._receive()
            block, self._rest = block[:left], block[left:]
            left -= len(block)
            yield block
        yield str(self._answer().get("sha256"))

    def ask_for_profile(self, text: str) -> str:
        """Leave a request for a profile in the folder, unless another one waits; return the text of the waiting one.

        Raises:
            LauncherError: the folder cannot be written.
        """
        return str(self._ask({"ask": text}).get("waits"))

    def withdraw(self, text: str) -> None:
        """Take this request back."""
        self._ask({"withdraw": text})

    def read_answer(self, path: str) -> tuple[str | None, str | None]:
        """Return the text of the request that waits, and of the answer in the folder; None for a missing one."""
        answer = self._ask({"answer": path})
        waits, text = answer.get("waits"), answer.get("text")
        return None if waits is None else str(waits), None if text is None else str(text)

    def _ask(self, request: dict[str, Any], *, of: RunFile | None = None) -> dict[str, Any]:
        """Return the answer to a request; an error `of` one file says nothing of the others."""
        self._channel.send(json.dumps(request).encode() + b"\n")
        answer = self._answer()
        if "error" not in answer:
            return answer
        if of is not None:
            raise ChangedError(f"{of.path}: cannot be read: {answer['error']}")
        raise LauncherError(f"the run's folder: {answer['error']}; is the job's output still there?")

    def _answer(self) -> dict[str, Any]:
        line = bytearray(self._rest)
        while (end := line.find(b"\n")) < 0:
            if len(line) > _LONGEST_LINE:
                raise self._no_answer()
            line += self._receive()
        self._rest = bytes(line[end + 1 :])
        try:
            answer = json.loads(line[:end])
        except ValueError as error:
            raise self._no_answer() from error
        if not isinstance(answer, dict):
            raise self._no_answer()
        return answer

    def _receive(self) -> bytes:
        block = self._channel.receive()
        if not block:
            raise self._no_answer()
        return block

    def _no_answer(self) -> UnreachableError:
        return UnreachableError(f"{self._channel.source}: the files are not read to their end; type the same again")


def _is_file(value: object) -> bool:
    """Return whether a value names a file below the folder: no answer may lead a copy out of its place."""
    match value:
        case [str(path), int(size)] if size >= 0:
            parts = path.split("/")
            return all(0 < len(part.encode("utf-8", "surrogateescape")) <= _LONGEST_NAME for part in parts) and not (
                {".", ".."} & set(parts) or "\0" in path
            )
    return False
