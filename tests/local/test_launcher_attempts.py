"""A job that is continued: its attempts stay apart, only one goes on at a time, and the command that is shown works."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.errors import ConflictError
from launcher.jobs import JobRef, Phase
from launcher.local import records
from launcher.local.jobs import LocalBackend
from tests.local.conftest import small_options
from trainer.checkpoint.files import read_manifest

REPOSITORY = Path(__file__).parents[2]
JOB = JobRef("local", "mine")


class Bench:
    """A state home of its own, and launchers that look at it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PNAS_")}
        own = {"XDG_STATE_HOME": str(home / "state"), "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        self.environ = kept | own
        self.backend = LocalBackend(records.state_home(self.environ))

    def start(self, program: str, *, resume: bool) -> None:
        """Start the job `mine`, or its next attempt."""
        record = {"spec": {"train": {"mode": "full", "grace_s": 5}}, "output": str(self.home)}
        command = [sys.executable, "-c", program]
        self.backend.start(JOB.name, command, record, self.environ, resume=resume)

    def end_of(self, program: str, *, resume: bool) -> Phase:
        self.start(program, resume=resume)
        wait_until(lambda: self.backend.get(JOB).phase.ended)
        return self.backend.get(JOB).phase

    def run(self, *words: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "launcher", *words],
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            cwd=cwd or self.home,
        )


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not true():
        assert time.monotonic() < deadline, "it did not come true in two minutes"
        time.sleep(0.02)


def says(text: str, code: int) -> str:
    return f"import sys; print('[rank 0 cpu:0 #1] {text}'); sys.exit({code})"


def test_attempts_of_a_job_keep_their_lines_and_their_ends_apart(bench: Bench) -> None:
    assert bench.end_of(says("first", 75), resume=False) is Phase.RESUMABLE
    assert bench.end_of(says("second", 1), resume=True) is Phase.FAILED
    assert bench.end_of(says("third", 0), resume=True) is Phase.SUCCEEDED
    assert bench.run("logs", "mine").stdout == "[rank 0 cpu:0] third\n"
    for number, text in enumerate(("first", "second", "third"), 1):
        assert bench.run("logs", "mine", "--attempt", str(number)).stdout == f"[rank 0 cpu:0] {text}\n"
    unknown = bench.run("logs", "mine", "--attempt", "4")
    assert (unknown.returncode, unknown.stderr) == (
        4,
        "error: job mine has attempts 1 to 3: there is no attempt 4\n",
    )
    status = bench.run("status", "mine").stdout
    for said in ("attempt  3", "attempt 1 ended: Resumable", "attempt 2 ended: Failed", "attempt 3 created"):
        assert said in status
    assert json.loads(bench.run("status", "mine", "--json").stdout)["status"]["attempt"] == 3


def test_a_cancelled_attempt_does_not_make_the_next_one_cancelled(bench: Bench) -> None:
    bench.start("import signal, sys, time; signal.signal(15, lambda *_: sys.exit(75)); time.sleep(100)", resume=False)
    bench.backend.cancel(JOB)
    assert bench.backend.get(JOB).phase is Phase.CANCELLED
    assert bench.end_of(says("again", 75), resume=True) is Phase.RESUMABLE


def test_a_job_that_still_runs_is_not_continued(bench: Bench) -> None:
    bench.start("import time; time.sleep(100)", resume=False)
    with pytest.raises(ConflictError, match=r"job mine still runs \(Running\): follow it"):
        bench.start(says("no", 0), resume=True)
    bench.backend.cancel(JOB)


def test_of_launchers_that_continue_a_job_at_once_one_does(bench: Bench) -> None:
    bench.end_of(says("first", 75), resume=False)
    program = (
        "import os, sys; from launcher.local.jobs import LocalBackend; from launcher.errors import ConflictError\n"
        "record = {'spec': {'train': {}}, 'output': os.getcwd()}\n"
        "sys.stdin.read()\n"
        "try: LocalBackend().start('mine', ['sleep', '30'], record, dict(os.environ), resume=True)\n"
        "except ConflictError: sys.exit(6)"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", program], env=bench.environ, stdin=subprocess.PIPE) for _ in range(4)
    ]
    for process in started:
        assert process.stdin is not None
        process.stdin.close()
    assert sorted(process.wait(timeout=240) for process in started) == [0, 6, 6, 6]
    assert bench.backend.get(JOB).attempt == 2
    bench.backend.cancel(JOB)


def test_the_command_that_is_shown_continues_a_cancelled_job_from_any_folder(bench: Bench, few_digits: Path) -> None:
    where = ("--data-path", str(few_digits), "--output", "out", "--name", "mine")
    recipe = small_options("--epochs", "300", "--steps", "10", "--checkpoint-every", "2", "--lr", "0.05")
    started = bench.run("submit", *recipe, *where, "--detach")
    assert started.returncode == 0, started.stderr
    saved = bench.home / "out" / "mine" / "checkpoints"
    wait_until(lambda: any(saved.glob("step-*/manifest.json")))
    assert bench.run("cancel", "mine").stdout == "mine Cancelled: stopped by SIGTERM; it can go on\n"
    [shown] = [line for line in bench.run("status", "mine").stdout.splitlines() if line.startswith("continue")]
    words = shlex.split(shown.removeprefix("continue"))
    assert words[:3] == ["python", "-m", "launcher"]
    assert "--backend local" in shown, "or it begins another one wherever there is a cluster"
    elsewhere = bench.home / "elsewhere"
    elsewhere.mkdir()
    nobody = bench.run("submit", "--resume", "auto", cwd=elsewhere)
    assert nobody.returncode == 2
    assert "it can be mine (Cancelled)" in nobody.stderr
    stopped = read_manifest(max(saved.glob("step-*"))).content["progress"]["epoch"]
    result = bench.run(*words[3:], "--epochs", str(stopped + 2), cwd=elsewhere)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "attempt 2 goes on from" in result.stdout
    assert "job        mine, attempt 2" in result.stderr
    assert list(elsewhere.iterdir()) == []
    command = bench.backend.get(JOB).details["command"]
    assert command[command.index("--lr") + 1] == "0.05", "what was given before need not be given again"
