"""The trainer without the wait for torch: a process that has imported torch forks the trainer, which forks its workers.

A worker takes 2.4 CPU seconds to import torch and what comes with it, and most tests give it less work than that. The
53 tests of test_bad_input.py, test_bad_images.py and test_training.py take 62 CPU seconds with forks, and 214 without
(torch 2.14.1, two busy cores of an AMD EPYC). That is worth this module.

A fork leaves out exec and what Python does before a program's first line. Each worker still imports a device's runtime
by itself. Tests with newly started processes cover how a user, the launcher and a pod start the trainer, and how it is
stopped and killed; `test_forked_trainer.py` compares both ways.
"""

import atexit
import importlib
import itertools
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import NoReturn
from unittest import mock

from trainer.shared.program import without_garbage_collector
from trainer.shared.start import module_command

IMPORTED_MODULES = (
    "trainer.cli",
    "trainer.run.attempt",
    "trainer.worker.run",
    "torch._dynamo",
    "trainer.proof.runner",
    "trainer.proof.process",
    "trainer.proof.collectives",
    "trainer.proof.exact",
    "trainer.proof.memory",
    "trainer.proof.overflow",
    "trainer.proof.promises",
    "trainer.proof.repeatable",
    "trainer.proof.rounded",
    "trainer.proof.speed",
    "trainer.records.tensorboard",
)
CHECK_LIMITS = "PNAS_TEST_CHECK_LIMITS"
"""The variable with shorter limits for checks of `prove`, such as `open=8 all-reduce=10`, in seconds."""
FIRST_MODULE = "PNAS_TEST_MODULE"
"""The variable with a module that a worker imports first, to plant a fault in it."""
IMPORT_PATH = sys.path[1:]
MOST_FILES = 1 << 12
"""None of these processes has more open files."""
PACKET_BYTES = 1 << 17
"""The largest request or answer."""


def run_forked_trainer(
    options: Sequence[str], *, environ: Mapping[str, str], file_limit: int, timeout_s: float
) -> "subprocess.CompletedProcess[str]":
    """Run the trainer's command line to its end, as `subprocess.run` does `python -m trainer`; one at a time.

    Args:
        file_limit: bytes to which each file may grow.

    Raises:
        TimeoutError: it did not end in time, and was killed.
    """
    server = _server()
    request = json.dumps([options, dict(environ), str(Path.cwd()), file_limit]).encode()
    with ThreadPoolExecutor() as readers:
        (stdout, output), (stderr, errors) = _pipe(readers), _pipe(readers)
        socket.send_fds(server, [request], [stdout, stderr])
        for number in (stdout, stderr):
            os.close(number)
        pid = int(server.recv(PACKET_BYTES))
        try:
            server.settimeout(timeout_s)
            code = int(server.recv(PACKET_BYTES))
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            server.settimeout(None)
            server.recv(PACKET_BYTES)
            raise
        server.settimeout(None)
        return subprocess.CompletedProcess(options, code, output.result(), errors.result())


def _pipe(readers: ThreadPoolExecutor) -> tuple[int, Future[str]]:
    """Return the writing end of a new pipe, and a future of the text that arrives at the other end."""
    reading, writing = os.pipe()
    return writing, readers.submit(_read, reading)


def _read(number: int) -> str:
    with open(number, encoding="utf-8") as pipe:
        return pipe.read()


@cache
def _server() -> socket.socket:
    """Start the process that forks, and return a connection to it; it ends with this process."""
    connection, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with server_end:
        # torch reads OMP_NUM_THREADS during its import; a process with more threads could not be forked.
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        environ.pop("PYTHONPATH", None)
        command = (sys.executable, "-u", "-m", "tests.local.forked_trainer", str(server_end.fileno()))
        process = subprocess.Popen(command, pass_fds=[server_end.fileno()], env=environ)
    atexit.register(_end, process, connection)
    return connection


def _end(process: "subprocess.Popen[bytes]", connection: socket.socket) -> None:
    connection.close()
    process.wait()


def main() -> None:
    """Import everything, and fork for each request; the fork becomes the trainer."""
    with without_garbage_collector():
        for name in IMPORTED_MODULES:
            importlib.import_module(name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the trainer
    with (
        mock.patch("trainer.supervisor.worker.subprocess", _subprocess(ForkedWorker)),
        mock.patch("trainer.proof.check_process.subprocess", _subprocess(ForkedCheck)),
        mock.patch("trainer.proof.small_runs.subprocess", _subprocess(ForkedRun)),
        socket.socket(fileno=int(sys.argv[1])) as connection,
    ):
        while True:
            request, files, _, _ = socket.recv_fds(connection, PACKET_BYTES, 2)
            if not request:
                return
            child = os.fork()
            if child == 0:
                _become_trainer(request, files)
            connection.send(str(child).encode())
            for number in files:
                os.close(number)
            _, status = os.waitpid(child, 0)
            connection.send(str(os.waitstatus_to_exitcode(status)).encode())


def _subprocess(popen: type) -> SimpleNamespace:
    """Return the module `subprocess` with another Popen."""
    names = ("PIPE", "STDOUT", "DEVNULL", "TimeoutExpired")
    return SimpleNamespace(Popen=popen, **{name: getattr(subprocess, name) for name in names})


def _become_trainer(request: bytes, files: Sequence[int]) -> NoReturn:
    with _WholeProgram():
        options, environ, folder, file_limit = json.loads(request)
        _reset_process(environ, stdout=files[0], stderr=files[1])
        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
        sys.argv[1:] = options
        _limit_checks(dict(word.split("=") for word in environ.get(CHECK_LIMITS, "").split()))
        sys.exit(importlib.import_module("trainer.cli").main())


def _limit_checks(limits: Mapping[str, str]) -> None:
    """Change the limits of some checks of `prove`."""
    catalogue = vars(importlib.import_module("trainer.proof.catalogue"))
    catalogue["CHECKS"] = tuple(
        replace(check, limit_s=float(limits.get(check.name, check.limit_s))) for check in catalogue["CHECKS"]
    )


class ForkedWorker:
    """Replaces `subprocess.Popen` in the supervisor: forks a worker instead of starting one."""

    def __init__(
        self,
        _argv: Sequence[str],
        *,
        env: Mapping[str, str],
        stdin: int,
        stdout: int,
        stderr: int,
        pass_fds: Sequence[int],
        start_new_session: bool,
    ) -> None:
        assert (stdin, start_new_session) == (subprocess.PIPE, True)
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            with _WholeProgram():
                os.setsid()
                os.dup2(reading, 0)
                _reset_process(env, stdout=stdout, stderr=stderr, passed=pass_fds)
                importlib.import_module("torch").set_num_threads(int(env["OMP_NUM_THREADS"]))
                if FIRST_MODULE in env:
                    importlib.import_module(env[FIRST_MODULE])
                importlib.import_module("trainer.worker.run").main()
        os.close(reading)
        self.stdin = os.fdopen(writing, "wb")

    def wait(self) -> int:
        """Wait until the worker has ended; return its exit code."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


class _Forked:
    """The end of a process that was forked, with the methods of `subprocess.Popen`."""

    pid: int
    returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code; None if the process still runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait for the end of the process; return its exit code."""
        if self.returncode is None:
            end = os.pidfd_open(self.pid)
            select.select([end], [], [], timeout_s)
            os.close(end)
        if self.poll() is None:
            assert timeout_s is not None
            raise subprocess.TimeoutExpired("a forked process", timeout_s)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to the process, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


class ForkedCheck(_Forked):
    """Replaces `subprocess.Popen` in the runner of `prove`: forks a check process instead of starting one."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        stdin: int,
        stdout: int,
        stderr: int,
        pass_fds: Sequence[int],
        start_new_session: bool,
        env: Mapping[str, str],
    ) -> None:
        assert (stdin, start_new_session) == (subprocess.PIPE, True)
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            with _WholeProgram():
                os.setsid()
                os.dup2(reading, 0)
                _reset_process(env, stdout=stdout, stderr=stderr, passed=pass_fds)
                importlib.import_module("torch").set_num_threads(int(env.get("OMP_NUM_THREADS", "1")))
                sys.argv[1:] = argv[-2:]
                sys.exit(importlib.import_module("trainer.proof.process").main())
        os.close(reading)
        self.stdin = os.fdopen(writing, "wb")


class ForkedRun(_Forked, AbstractContextManager["ForkedRun"]):
    """Replaces `subprocess.Popen` in the small runs of `prove`: forks a trainer from a check process.

    That process has no thread, and has opened no device.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        stdin: int,
        stdout: int,
        stderr: int,
        text: bool,
        errors: str,
        env: Mapping[str, str],
    ) -> None:
        assert (stdin, stdout, stderr, text) == (subprocess.DEVNULL, subprocess.PIPE, subprocess.STDOUT, True)
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            with _WholeProgram():
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                _reset_process(env, stdout=writing, stderr=writing)
                sys.argv[1:] = argv[len(module_command("")) :]
                sys.exit(importlib.import_module("trainer.cli").main())
        os.close(writing)
        self.stdout = os.fdopen(reading, encoding="utf-8", errors=errors)

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.stdout.close()
        self.wait()


def _reset_process(environ: Mapping[str, str], *, stdout: int, stderr: int, passed: Sequence[int] = ()) -> None:
    """Give this fork the files, environment, import path and signal handlers that it would have after exec."""
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    # The server's own streams can be files, in which a stream remembers its position; these are pipes.
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    for begin, end in itertools.pairwise([2, *sorted(passed), MOST_FILES]):
        os.closerange(begin + 1, end)
    variables = dict(environ)  # it can be os.environ itself
    os.environ.clear()
    os.environ.update(variables)
    sys.path[1:] = [*filter(None, environ.get("PYTHONPATH", "").split(os.pathsep)), *IMPORT_PATH]
    tempfile.tempdir = None
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


class _WholeProgram(AbstractContextManager[None]):
    """Ends the process at the end of the block, in the way Python ends a program."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> NoReturn:
        if isinstance(error, SystemExit):
            assert isinstance(error.code, int), "both programs end with a number"
            os._exit(error.code)
        if kind is not None and error is not None:
            sys.excepthook(kind, error, trace)
        os._exit(0 if error is None else 1)


if __name__ == "__main__":
    main()
