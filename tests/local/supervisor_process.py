"""A supervisor in a separate process, with small scripts as its workers."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# In a separate process a test can signal the supervisor, kill it, and give it any stdout.
SUPERVISOR = """
import json, os, sys, time
from pathlib import Path
from trainer.supervisor import Limits, Supervisor, WorkerCommand
from trainer.supervisor.worker import WorkerProcess
spec = json.loads(sys.argv[1])
signal = WorkerProcess.signal
# A busy machine does something else after a signal: the supervisor looks again after the signal has had its effect.
WorkerProcess.signal = lambda worker, number: (signal(worker, number), time.sleep(spec["lag_s"]))
commands = [WorkerCommand(r, f"cpu:{r}", tuple(a), os.environ, Path(l)) for r, (a, l) in enumerate(spec["commands"])]
limits = Limits(**spec["limits"])
with Supervisor(sys.stdout.buffer, node_rank=0, limits=limits) as supervisor:
    for _ in range(spec["groups"]):
        outcome = supervisor.run(commands, grace_s=spec["grace_s"])
    supervisor.end(outcome)
sys.exit(outcome.exit_code)
"""
WAIT_FOR_FILE = "import pathlib, time\nwhile not pathlib.Path({!r}).exists(): time.sleep(.01)\n"
# The supervisor starts a worker with the signal blocked.
UNBLOCK_SIGUSR1 = "signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})\n"
# A worker that ignores SIGTERM. Workers that sleep for 1,000 s, longer than a test may last, must be stopped.
IGNORE_SIGTERM = (
    "import pathlib, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "pathlib.Path({!r}).write_text('1')\ntime.sleep(1000)"
)


@dataclass(frozen=True)
class SupervisorResult:
    """A supervisor that has ended: its exit code, its output, and the log file of each rank."""

    exit_code: int
    stdout: bytes
    logs: tuple[bytes, ...]

    @property
    def lines(self) -> list[str]:
        return self.stdout.decode(errors="surrogateescape").splitlines()

    def texts(self, tag: str) -> list[str]:
        """Return the text of each line with this tag; check that their numbers count from 1 without a gap."""
        numbered = re.findall(rb"(?m)^\[" + tag.encode() + rb" #(\d+)\] (.*)$", self.stdout)
        numbers = [int(number) for number, _ in numbered]
        assert numbers == list(range(1, len(numbers) + 1)), numbers
        return [text.decode(errors="surrogateescape") for _, text in numbered]


class SupervisorRunner:
    """Starts supervisors for a test, and leaves none of their processes behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []

    def log(self, rank: int) -> Path:
        return self.folder / f"rank_{rank}.log"

    def start(
        self,
        *scripts: str,
        grace_s: float = 600.0,
        stdout: int = subprocess.PIPE,
        logs: dict[int, Path] | None = None,
        lag_s: float = 0.0,
        groups: int = 1,
        **limits: float,
    ) -> subprocess.Popen[bytes]:
        """Start a supervisor with one worker for each script.

        Args:
            lag_s: how long the supervisor pauses after each signal that it sends, as on a busy machine.
            groups: how often it starts them, one group after another.
            limits: waiting times of `trainer.supervisor.Limits`.
        """
        files = [(logs or {}).get(rank, self.log(rank)) for rank in range(len(scripts))]
        argv = [[sys.executable, "-u", "-c", script] for script in scripts]
        commands = [(a, str(file)) for a, file in zip(argv, files, strict=True)]
        spec = json.dumps(
            {"commands": commands, "grace_s": grace_s, "lag_s": lag_s, "groups": groups, "limits": limits}
        )
        # With PYTHONUNBUFFERED every test of last words would pass, whatever the worker's command line says.
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        process = subprocess.Popen([sys.executable, "-c", SUPERVISOR, spec], stdout=stdout, env=environ)
        self._processes.append(process)
        return process

    def finish(self, process: subprocess.Popen[bytes]) -> SupervisorResult:
        """Wait until a supervisor has ended; return its result."""
        output, _ = process.communicate()
        logs = [self.log(rank) for rank in range(99) if self.log(rank).is_file()]
        return SupervisorResult(process.returncode, output or b"", tuple(log.read_bytes() for log in logs))

    def run(self, *scripts: str, **options: Any) -> SupervisorResult:
        """Run a supervisor to its end."""
        return self.finish(self.start(*scripts, **options))

    def stop(self) -> None:
        for process in self._processes:
            process.kill()  # does nothing to a process that `finish` has waited for
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def signal_handling_script(ready: Path, code: int) -> str:
    """Return a worker that writes the file `ready`, prints `usr1` on SIGUSR1, and exits with `code` on SIGTERM."""
    return (
        "import pathlib, signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit({code})))\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('usr1'))\n"
        f"{UNBLOCK_SIGUSR1}"
        f"pathlib.Path({str(ready)!r}).write_text('1')\n"
        "while True: time.sleep(.02)"
    )


def wait_for_file(path: Path) -> str:
    """Wait until a worker has written to the file `path`; return the text."""
    while not (path.exists() and path.read_text()):
        time.sleep(0.01)
    return path.read_text()
