"""A supervisor of scripts in a process of its own, for the tests of its promises."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The supervisor in a process of its own, so that it can be signalled, killed, and given any stdout.
SUPERVISOR = """
import json, os, sys, time
from pathlib import Path
from trainer.supervisor import WorkerCommand, loop, supervise
from trainer.supervisor.worker import WorkerProcess
spec = json.loads(sys.argv[1])
signal = WorkerProcess.signal
# As on a busy machine, which goes on with something else: what a signal brings about is there before the next look.
WorkerProcess.signal = lambda worker, number: (signal(worker, number), time.sleep(spec["lag_s"]))
for name, value in spec["constants"].items():
    setattr(loop, name, value)
commands = [WorkerCommand(r, f"cpu:{r}", tuple(a), os.environ, Path(l)) for r, (a, l) in enumerate(spec["commands"])]
outcome = supervise(commands, stdout=sys.stdout.buffer, node_rank=0, grace_s=spec["grace_s"])
sys.exit(outcome.exit_code)
"""
WAIT = "import pathlib, time\nwhile not pathlib.Path({!r}).exists(): time.sleep(.01)\n"
# A worker begins with the signal blocked.
UNBLOCK = "signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})\n"
# A worker that does not end when it is told to.
STUBBORN = (
    "import pathlib, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "pathlib.Path({!r}).write_text('1')\ntime.sleep(1000)"
)


@dataclass(frozen=True)
class Ended:
    """What a supervisor that has ended left."""

    exit_code: int
    stdout: bytes
    logs: tuple[bytes, ...]

    @property
    def lines(self) -> list[str]:
        return self.stdout.decode(errors="surrogateescape").splitlines()

    def of(self, tag: str) -> list[str]:
        """The text of the lines with this tag, whose numbers have to count from 1 without a gap."""
        found = re.findall(rb"(?m)^\[" + tag.encode() + rb" #(\d+)\] (.*)$", self.stdout)
        numbers = [int(number) for number, _ in found]
        assert numbers == list(range(1, len(found) + 1)), numbers
        return [text.decode(errors="surrogateescape") for _, text in found]


class Node:
    """Starts supervisors for a test, and leaves none of their processes behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[subprocess.Popen[bytes]] = []

    def log(self, rank: int) -> Path:
        return self.folder / f"rank_{rank}.log"

    def start(
        self,
        *scripts: str,
        grace_s: float = 600.0,
        stdout: int = subprocess.PIPE,
        logs: dict[int, Path] | None = None,
        lag_s: float = 0.0,
        **constants: float,
    ) -> subprocess.Popen[bytes]:
        """`lag_s` is how long a busy machine does something else whenever the supervisor has sent a signal."""
        files = [(logs or {}).get(rank, self.log(rank)) for rank in range(len(scripts))]
        argv = [[sys.executable, "-u", "-c", script] for script in scripts]
        commands = [(a, str(file)) for a, file in zip(argv, files, strict=True)]
        spec = json.dumps({"commands": commands, "grace_s": grace_s, "lag_s": lag_s, "constants": constants})
        # PYTHONUNBUFFERED would make every test of last words pass, whatever the worker's command line says.
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        process = subprocess.Popen([sys.executable, "-c", SUPERVISOR, spec], stdout=stdout, env=environ)
        self._started.append(process)
        return process

    def end(self, process: subprocess.Popen[bytes]) -> Ended:
        output, _ = process.communicate()
        logs = [self.log(rank) for rank in range(99) if self.log(rank).is_file()]
        return Ended(process.returncode, output or b"", tuple(log.read_bytes() for log in logs))

    def run(self, *scripts: str, **options: Any) -> Ended:
        return self.end(self.start(*scripts, **options))

    def stop(self) -> None:
        for process in self._started:
            process.kill()  # no more than a no-op where `end` has waited for it
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def answering(ready: Path, code: int) -> str:
    """A worker that says that it is `ready`, answers SIGUSR1, and ends with `code` when it is told to."""
    return (
        "import pathlib, signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit({code})))\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('usr1'))\n"
        f"{UNBLOCK}"
        f"pathlib.Path({str(ready)!r}).write_text('1')\n"
        "while True: time.sleep(.02)"
    )


def until(path: Path) -> str:
    """The content of a file that a worker writes to say how far it is."""
    while not (path.exists() and path.read_text()):
        time.sleep(0.01)
    return path.read_text()
