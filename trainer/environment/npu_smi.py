"""npu-smi as a program that can hang: one at a time, with a limit of its time and of its output.

It asks the driver, and a driver whose device has failed may never answer: then not even SIGKILL ends npu-smi, and a
wait for its end would last as long. So nothing here waits long for such a process, and no second one is started.
"""

import os
import select
import signal
import subprocess
import time
from contextlib import suppress

TIMEOUT_S = 20.0
"""npu-smi needs a second, and several on a node with many busy NPUs."""
_KILL_S = 1.0
"""How long SIGKILL can take, for a process that it can end."""
_LONGEST_OUTPUT = 1 << 20
"""Bytes. A node with 64 chips and many processes prints a tenth of it."""


class NpuSmiProgram:
    """The program at `path`; `ask` waits for it at most `timeout_s` seconds."""

    def __init__(self, path: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, *arguments: str, timeout_s: float | None = None) -> str:
        """Return what npu-smi prints, within `timeout_s` if it is given.

        Raises:
            TimeoutError: It does not answer in time, or one that was asked before still hangs.
            OSError: It cannot be started, fails, or prints without an end.
        """
        if self._process is not None and self._process.poll() is None:
            raise TimeoutError("it hangs, and cannot be killed")
        process = subprocess.Popen(
            [self._path, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._process = process
        assert process.stdout is not None
        try:
            limit_s = self._timeout_s if timeout_s is None else timeout_s
            output = self._read(process, process.stdout.fileno(), limit_s).decode(errors="replace")
        finally:
            self.end()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_KILL_S)
            process.stdout.close()
        if process.returncode:
            raise OSError(" ".join(output.split())[:200] or f"exit code {process.returncode}")
        return output

    def end(self) -> None:
        """Kill it and its children, if it runs; another thread can do that."""
        if self._process is not None and self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _read(self, process: "subprocess.Popen[bytes]", pipe: int, timeout_s: float) -> bytes:
        """Return the output of a process that ends in time."""
        late = TimeoutError(f"no answer within {timeout_s:g} s")
        deadline = time.monotonic() + timeout_s
        ready, output = select.poll(), bytearray()
        ready.register(pipe, select.POLLIN)
        while (left_s := deadline - time.monotonic()) > 0:
            if not ready.poll(left_s * 1000):
                continue
            chunk = os.read(pipe, 1 << 16)
            output += chunk
            if len(output) > _LONGEST_OUTPUT:
                raise OSError(f"more than {_LONGEST_OUTPUT} bytes of output")
            if not chunk:
                try:
                    process.wait(deadline - time.monotonic())
                except subprocess.TimeoutExpired:
                    raise late from None
                return bytes(output)
        raise late
