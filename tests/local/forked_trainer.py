"""The trainer without the wait for torch: a process that has imported it forks the trainer, who forks its workers.

A worker takes 2.4 CPU seconds to import torch and what comes with it (torch 2.14.1, two busy cores of an AMD EPYC), and
most tests ask less of it than that. What is left out is exec, and what Python does before a program's first line; a
device's runtime is imported by each worker, as ever. How the trainer is started by a user, by the launcher and in a
pod, and how it is stopped and killed, is tested with processes that are started anew.
"""

import atexit
import gc
import importlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import NoReturn
from unittest import mock

IMPORTED = ("trainer.cli", "trainer.run.attempt", "trainer.worker.run", "torch._dynamo", "trainer.records.tensorboard")
PATH = sys.path[1:]
OPEN = 1 << 12
"""More files than any of these processes has open."""
PACKET = 1 << 17
"""Bytes that a request or an answer has at most."""


def run_trainer(
    options: Sequence[str], *, environ: Mapping[str, str], file_limit: int, timeout_s: float
) -> "subprocess.CompletedProcess[str]":
    """Run the trainer's command line to its end, as `subprocess.run` does `python -m trainer`; one at a time.

    Args:
        file_limit: bytes to which files may grow.

    Raises:
        TimeoutError: it did not end in time, and was killed.
    """
    server = _server()
    request = json.dumps([options, dict(environ), str(Path.cwd()), file_limit]).encode()
    with ThreadPoolExecutor() as readers:
        (stdout, said), (stderr, complained) = _pipe(readers), _pipe(readers)
        socket.send_fds(server, [request], [stdout, stderr])
        for number in (stdout, stderr):
            os.close(number)
        pid = int(server.recv(PACKET))
        try:
            server.settimeout(timeout_s)
            code = int(server.recv(PACKET))
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            server.settimeout(None)
            server.recv(PACKET)
            raise
        server.settimeout(None)
        return subprocess.CompletedProcess(options, code, said.result(), complained.result())


def _pipe(readers: ThreadPoolExecutor) -> tuple[int, Future[str]]:
    """Where to write, and all that is read at the other end."""
    reading, writing = os.pipe()
    return writing, readers.submit(_read, reading)


def _read(number: int) -> str:
    with open(number, encoding="utf-8") as pipe:
        return pipe.read()


@cache
def _server() -> socket.socket:
    """A connection to the process that forks; it ends with this one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        # OMP_NUM_THREADS is read while torch is imported, and with more threads it could not be forked.
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        environ.pop("PYTHONPATH", None)
        command = (sys.executable, "-u", "-m", "tests.local.forked_trainer", str(theirs.fileno()))
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environ)
    atexit.register(_end, process, ours)
    return ours


def _end(process: "subprocess.Popen[bytes]", connection: socket.socket) -> None:
    connection.close()
    process.wait()


def main() -> None:
    """Be that process: import everything, and fork for each request; the fork is the trainer."""
    gc.disable()  # as trainer.worker.__main__ does; what it looked through would be copied by each fork besides
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()
    gc.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the trainer
    with (
        mock.patch("trainer.supervisor.worker.subprocess", SimpleNamespace(Popen=ForkedWorker, PIPE=subprocess.PIPE)),
        socket.socket(fileno=int(sys.argv[1])) as connection,
    ):
        while True:
            request, files, _, _ = socket.recv_fds(connection, PACKET, 2)
            if not request:
                return
            child = os.fork()
            if child == 0:
                _be_the_trainer(request, files)
            connection.send(str(child).encode())
            for number in files:
                os.close(number)
            _, status = os.waitpid(child, 0)
            connection.send(str(os.waitstatus_to_exitcode(status)).encode())


def _be_the_trainer(request: bytes, files: Sequence[int]) -> NoReturn:
    with _WholeProgram():
        options, environ, folder, file_limit = json.loads(request)
        _become(environ, stdout=files[0], stderr=files[1])
        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
        sys.argv[1:] = options
        sys.exit(importlib.import_module("trainer.cli").main())


class ForkedWorker:
    """What the supervisor has of `subprocess.Popen`, for a worker."""

    def __init__(
        self,
        _argv: Sequence[str],
        *,
        env: Mapping[str, str],
        stdin: int,
        stdout: int,
        stderr: int,
        start_new_session: bool,
    ) -> None:
        assert (stdin, start_new_session) == (subprocess.PIPE, True)
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            with _WholeProgram():
                os.setsid()
                os.dup2(reading, 0)
                _become(env, stdout=stdout, stderr=stderr)
                importlib.import_module("torch").set_num_threads(int(env["OMP_NUM_THREADS"]))
                importlib.import_module("trainer.worker.run").main()
        os.close(reading)
        self.stdin = os.fdopen(writing, "wb")

    def wait(self) -> int:
        """Its exit code."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _become(environ: Mapping[str, str], *, stdout: int, stderr: int) -> None:
    """Have of this process what exec would have left of it."""
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    os.closerange(3, OPEN)
    os.environ.clear()
    os.environ.update(environ)
    sys.path[1:] = [*filter(None, environ.get("PYTHONPATH", "").split(os.pathsep)), *PATH]
    tempfile.tempdir = None
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


class _WholeProgram(AbstractContextManager[None]):
    """Ends the process where a program would end, and as Python ends it then."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> NoReturn:
        if isinstance(error, SystemExit):
            assert isinstance(error.code, int), "as both programs end"
            os._exit(error.code)
        if kind is not None and error is not None:
            sys.excepthook(kind, error, trace)
        os._exit(0 if error is None else 1)


if __name__ == "__main__":
    main()
