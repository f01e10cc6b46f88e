"""A run's processes: they start in a node's namespaces, log to files, and end with the namespaces or one by one."""

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

# Kubernetes is written in Go, which by default collects garbage whenever its memory has doubled. On two cores that the
# tests share with it, this took a fifth of the API server's time. Now it collects when the memory has reached five
# times the used part.
ENVIRON = {"GOGC": "400"}
# A short-lived program such as kubectl needs no collection: 0.048 instead of 0.069 CPU seconds for `kubectl get`
# (1.36.3).
SHORT_LIVED = {"GOGC": "off"}


class StartError(Exception):
    """A part of the cluster did not start; the message is one line and names the log."""


class Namespaces:
    """A node's view: its own mounts and network, and the process namespace that both nodes share."""

    def __init__(self, pid: int) -> None:
        """Use the namespaces of the process `pid`, a process id of this machine."""
        self.pid = pid

    @property
    def network(self) -> str:
        """Return the network namespace's path."""
        return f"/proc/{self.pid}/ns/net"

    def inside(self, command: Sequence[str]) -> list[str]:
        """Return the command line that runs `command` in the namespaces."""
        return ["nsenter", "--target", str(self.pid), "--pid", "--mount", "--net", f"--wd={Path.cwd()}", "--", *command]

    def run(self, *command: str) -> str:
        """Run a command in the namespaces to its end, and return its output.

        Raises:
            StartError: it failed.
        """
        return output_of(self.inside(command))


def output_of(command: Sequence[str]) -> str:
    """Run a command to its end, and return its output.

    Raises:
        StartError: it failed; the message has the last line of its error output.
    """
    result = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **SHORT_LIVED})
    if result.returncode != 0:
        raise StartError(f"{shlex.join(command)}: {(result.stderr.strip().splitlines() or ['failed'])[-1]}")
    return result.stdout


def only_child(pid: int) -> int:
    """Return the process id of the one child of `pid`."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())


class Processes:
    """The processes of one run."""

    def __init__(self, logs: Path) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._logs = logs
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: Sequence[str], *, environ: Mapping[str, str] | None = None) -> int:
        """Start a process whose name is also its log's name, and return its process id; it ends with this process.

        An earlier process of this name is ended first.
        """
        self.stop(name)
        with (self._logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", "--", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **ENVIRON, **(environ or {})},
            )
        self._started[name] = process
        return process.pid

    def until(self, name: str, ready: Callable[[], bool], *, within_s: float = 180) -> None:
        """Wait until `ready`.

        Raises:
            StartError: `name` has ended, or the time is up.
        """
        deadline = time.monotonic() + within_s
        while not ready():
            process = self._started[name]
            if process.poll() is not None or time.monotonic() > deadline:
                state = f"ended with {process.returncode}" if process.returncode is not None else "is not ready"
                raise StartError(f"{name} {state}: {self._last_line(name)} ({self._logs / name}.log)")
            time.sleep(0.05)

    def stop(self, name: str, *, within_s: float = 10) -> None:
        """End one process, with SIGTERM and then SIGKILL."""
        process = self._started.pop(name, None)
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(within_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def stop_all(self) -> None:
        """Kill all processes at once; their data is deleted anyway."""
        for process in self._started.values():
            process.kill()
        for process in self._started.values():
            process.wait()
        self._started.clear()

    def _last_line(self, name: str) -> str:
        lines = (self._logs / f"{name}.log").read_text(errors="replace").splitlines()
        return lines[-1][-300:] if lines else "its log is empty"
