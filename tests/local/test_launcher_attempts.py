"""A continued job: its attempts stay apart, only one runs at a time, and the command that the status shows works."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.errors import ConflictError, LauncherError
from launcher.jobs import JobRef, Phase
from launcher.local.submitter import start_job
from tests.local.conftest import small_options
from tests.local.job_runner import JobRunner, wait_until
from trainer.checkpoint.reading import read_manifest

JOB = JobRef("local", "mine")


def script(text: str, code: int) -> str:
    """Return a program that prints one line and exits with `code`."""
    return f"say(0, {text!r})\nsys.exit({code})"


def test_each_attempt_of_a_job_has_its_own_lines_and_its_own_end(runner: JobRunner) -> None:
    assert runner.run_to_end(script("first", 75), JOB.name) is Phase.RESUMABLE
    assert runner.run_to_end(script("second", 1), JOB.name, resume=True) is Phase.FAILED
    assert runner.run_to_end(script("third", 0), JOB.name, resume=True) is Phase.SUCCEEDED
    assert runner.launch("logs", "mine").stdout == "[rank 0 cpu:0] third\n"
    for number, text in enumerate(("first", "second", "third"), 1):
        assert runner.launch("logs", "mine", "--attempt", str(number)).stdout == f"[rank 0 cpu:0] {text}\n"
    unknown = runner.launch("logs", "mine", "--attempt", "4")
    assert (unknown.returncode, unknown.stderr) == (
        4,
        "error: job mine has attempts 1 to 3: there is no attempt 4\n",
    )
    status = runner.launch("status", "mine").stdout
    for text in ("attempt  3", "attempt 1 ended: Resumable", "attempt 2 ended: Failed", "attempt 3 created"):
        assert text in status
    assert json.loads(runner.launch("status", "mine", "--json").stdout)["status"]["attempt"] == 3


def test_a_job_that_cannot_be_started_says_why_and_leaves_nothing(runner: JobRunner) -> None:
    with pytest.raises(LauncherError, match=r"^job mine could not be started: .*No such file or directory: '/none'$"):
        start_job(runner.jobs, JOB.name, ["/none"], {"spec": {}, "output": "out"}, runner.environ)
    assert runner.jobs.list() == []


def test_a_cancelled_attempt_does_not_make_the_next_one_cancelled(runner: JobRunner) -> None:
    runner.start("signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); time.sleep(100)", JOB.name)
    runner.jobs.cancel(JOB)
    assert runner.jobs.get(JOB).phase is Phase.CANCELLED
    assert runner.run_to_end(script("again", 75), JOB.name, resume=True) is Phase.RESUMABLE


def test_a_job_that_still_runs_is_not_continued(runner: JobRunner) -> None:
    runner.start("time.sleep(100)", JOB.name)
    with pytest.raises(ConflictError, match=r"job mine still runs \(Running\): follow it"):
        runner.start(script("never", 0), JOB.name, resume=True)
    runner.jobs.cancel(JOB)


def test_one_of_several_launchers_continues_a_job(runner: JobRunner) -> None:
    runner.run_to_end(script("first", 75), JOB.name)
    program = (
        "import os, sys; from launcher.errors import ConflictError; from launcher.local.jobs import LocalJobs\n"
        "from launcher.local.submitter import start_job\n"
        "record = {'spec': {'train': {}}, 'output': os.getcwd()}\n"
        "sys.stdin.read()\n"
        "try: start_job(LocalJobs(), 'mine', ['sleep', '30'], record, dict(os.environ), resume=True)\n"
        "except ConflictError: sys.exit(6)"
    )
    launchers = [
        subprocess.Popen([sys.executable, "-c", program], env=runner.environ, stdin=subprocess.PIPE) for _ in range(4)
    ]
    for process in launchers:
        assert process.stdin is not None
        process.stdin.close()
    assert sorted(process.wait(timeout=240) for process in launchers) == [0, 6, 6, 6]
    assert runner.jobs.get(JOB).attempt == 2
    runner.jobs.cancel(JOB)


def test_the_command_in_the_status_continues_a_cancelled_job_from_any_folder(
    runner: JobRunner, few_digits: Path
) -> None:
    folders = ("--data-path", str(few_digits), "--output", "out", "--name", "mine")
    recipe = small_options("--epochs", "300", "--steps", "10", "--checkpoint-every", "2", "--lr", "0.05")
    started = runner.launch("submit", *recipe, *folders, "--detach")
    assert started.returncode == 0, started.stderr
    checkpoints = runner.home / "out" / "mine" / "checkpoints"
    wait_until(lambda: any(checkpoints.glob("step-*/manifest.json")))
    assert runner.launch("cancel", "mine").stdout == "mine Cancelled: stopped by SIGTERM; it can go on\n"
    [hint] = [line for line in runner.launch("status", "mine").stdout.splitlines() if line.startswith("continue")]
    words = shlex.split(hint.removeprefix("continue"))
    assert words[:3] == ["python", "-m", "launcher"]
    assert "--backend local" in hint, "without it, the command starts another job where there is a cluster"
    elsewhere = runner.home / "elsewhere"
    elsewhere.mkdir()
    unnamed = runner.launch("submit", "--resume", "auto", cwd=elsewhere)
    assert unnamed.returncode == 2
    assert "it can be mine (Cancelled)" in unnamed.stderr
    for option, environ in ((("--seed", "5"), {}), ((), {"PNAS_SEED": "5"})):
        runner.environ |= environ
        refused = runner.launch("submit", "--name", "mine", "--resume", "auto", *option, cwd=elsewhere)
        assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
        assert "error: --seed 5: checkpoint step-" in refused.stderr
        assert ("(--seed comes from the environment" in refused.stderr) == bool(environ)
    del runner.environ["PNAS_SEED"]
    assert runner.jobs.get(JOB).attempt == 1, "a refused attempt is not spent"
    stopped = read_manifest(max(checkpoints.glob("step-*"))).content["progress"]["epoch"]
    result = runner.launch(*words[3:], "--epochs", str(stopped + 2), cwd=elsewhere)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "attempt 2 goes on from" in result.stdout
    assert "job        mine, attempt 2" in result.stderr
    assert list(elsewhere.iterdir()) == []
    command = runner.jobs.get(JOB).command
    assert command[command.index("--lr") + 1] == "0.05", "the command need not repeat the settings"
