"""Small programs as jobs of the local backend, and launchers that look at them, in a private state folder."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from launcher.jobs import JobRef, LogBlock, Phase
from launcher.local import records
from launcher.local.jobs import LocalJobs
from launcher.local.submitter import start_job

REPOSITORY = Path(__file__).parents[2]
# The beginning of every program: `say` prints a numbered line as the trainer's supervisor does.
PRELUDE = """
import os, signal, sys, time
from pathlib import Path
counts = {}
def say(rank, text, skip=0):
    counts[rank] = counts.get(rank, 0) + 1 + skip
    tag = f"rank {rank} cpu:{rank}" if rank is not None else "node 0"
    print(f"[{tag} #{counts[rank]}] {text}", flush=True)
def wait_for_file(name):
    deadline = time.monotonic() + 600  # no test leaves a program behind
    while not Path(name).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
"""


class JobRunner:
    """Starts programs as jobs, and launchers; all share the folder `home`, which must be the working directory."""

    def __init__(self, home: Path) -> None:
        self.home = home
        environ = {name: value for name, value in os.environ.items() if not name.startswith("PNAS_")}
        settings = {"XDG_STATE_HOME": str(home / "state"), "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        self.environ = environ | settings

    @property
    def jobs(self) -> LocalJobs:
        return LocalJobs(records.state_home(self.environ))

    def start(self, program: str, name: str = "job", *, grace_s: float = 5, resume: bool = False) -> JobRef:
        """Start a job, or its next attempt."""
        script = self.home / f"{name}.py"
        script.write_text(PRELUDE + program)
        record = {"spec": {"train": {"grace_s": grace_s, "mode": "full"}}, "output": str(self.home / "out" / name)}
        return start_job(self.jobs, name, [sys.executable, str(script)], record, self.environ, resume=resume)

    def run_to_end(self, program: str, name: str = "job", *, resume: bool = False) -> Phase:
        """Start a job, or its next attempt, and wait until it has ended."""
        return self.wait_for_end(self.start(program, name, resume=resume))

    def wait_for_end(self, ref: JobRef) -> Phase:
        wait_until(lambda: self.jobs.get(ref).phase.ended)
        return self.jobs.get(ref).phase

    def log(self, ref: JobRef) -> bytes:
        return b"".join(item.data for item in self.jobs.logs(ref) if isinstance(item, LogBlock))

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "launcher", *words]

    def launch(self, *words: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
        """Run a launcher to its end."""
        return subprocess.run(
            self.command(*words), env=self.environ, capture_output=True, text=True, timeout=240, check=False, cwd=cwd
        )

    def launch_in_background(self, *words: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            self.command(*words), env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )

    def create_file(self, name: str) -> None:
        """Let a program continue that waits in `wait_for_file(name)`."""
        (self.home / name).touch()


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds; fail after five minutes."""
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline, "the condition did not hold within five minutes"
        time.sleep(0.02)
