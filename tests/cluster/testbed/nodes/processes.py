"""A run's processes: started in a node's namespaces, logging to files, ended with the namespaces or one by one."""

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

# Kubernetes is written in Go, which by default collects garbage whenever its memory has doubled: on two cores that the
# tests share with it, a fifth of the API server's time. It may have five times what is in use.
ENVIRON = {"GOGC": "400"}
# What ends at once, as kubectl, needs to collect none: 0.048 CPU seconds for 0.069 of `kubectl get` (1.36.3).
ENDS_AT_ONCE = {"GOGC": "off"}


class StartError(Exception):
    """Something of the cluster did not start; the message is one line and names the log."""


class Namespaces:
    """What a node sees: its own mounts and network, and the process namespace that both nodes share."""

    def __init__(self, pid: int) -> None:
        """`pid` is its first process, as this machine counts."""
        self.pid = pid

    @property
    def network(self) -> str:
        """The network namespace's path."""
        return f"/proc/{self.pid}/ns/net"

    def inside(self, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` there."""
        return ["nsenter", "--target", str(self.pid), "--pid", "--mount", "--net", f"--wd={Path.cwd()}", "--", *command]

    def run(self, *command: str) -> str:
        """Run it to its end, and give back what it printed.

        Raises:
            StartError: it failed.
        """
        return output_of(self.inside(command))


def output_of(command: Sequence[str]) -> str:
    """Run a command to its end, and give back what it printed.

    Raises:
        StartError: it failed; with the last line of its complaint.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **ENDS_AT_ONCE})
    if done.returncode != 0:
        raise StartError(f"{shlex.join(command)}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return done.stdout


def only_child(pid: int) -> int:
    """The process id of the one process that `pid` has started."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())


class Processes:
    """The processes of one run."""

    def __init__(self, logs: Path) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._logs = logs
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: Sequence[str], *, environ: Mapping[str, str] | None = None) -> int:
        """Start it under a name, which is its log's too; it ends when this process does. Returns its process id."""
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
                what = f"ended with {process.returncode}" if process.returncode is not None else "is not ready"
                raise StartError(f"{name} {what}: {self._last_line(name)} ({self._logs / name}.log)")
            time.sleep(0.05)

    def stop(self, name: str, *, within_s: float = 10) -> None:
        """End one, with SIGTERM and then SIGKILL."""
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
        """End all at once: what they would save goes with them."""
        for process in self._started.values():
            process.kill()
        for process in self._started.values():
            process.wait()
        self._started.clear()

    def _last_line(self, name: str) -> str:
        lines = (self._logs / f"{name}.log").read_text(errors="replace").splitlines()
        return lines[-1][-300:] if lines else "it said nothing"
