"""The files of a run on this machine, read by the same program as in a pod."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from launcher.errors import UnreachableError
from launcher.results.file_client import server_command

_BLOCK = 1 << 16


class _Pipes:
    """A channel to a process."""

    source = "this machine"

    def __init__(self, to_program: IO[bytes], from_program: IO[bytes]) -> None:
        self._to, self._from = to_program, from_program

    def send(self, data: bytes) -> None:
        try:
            self._to.write(data)
            self._to.flush()
        except OSError as error:
            raise UnreachableError(f"the program that reads the run's files has ended: {error.strerror}") from error

    def receive(self) -> bytes:
        return os.read(self._from.fileno(), _BLOCK)


@contextmanager
def open_local_files(folder: Path) -> Iterator[_Pipes]:
    """Start a program that serves the files of a folder."""
    command = server_command(folder, sys.executable)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield _Pipes(process.stdin, process.stdout)
        finally:
            process.kill()
