"""Closed, full and broken standard streams: no traceback, the documented exit code, and jobs that are not disturbed."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from launcher.jobs import JobRef, Phase
from tests.local.conftest import SMALL
from tests.local.job_runner import JobRunner

FULL = "error: standard output: No space left on device; a running job goes on\n"

TRAINER_FULL = "error: standard output: No space left on device; free it, permit it or choose another place\n"


def run(words: Sequence[str], redirection: str, environ: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """Run a program with its streams redirected as a shell does it."""
    shell = ("sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-m")
    return subprocess.run((*shell, *words), env=environ, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.parametrize(
    ("words", "redirection", "code", "errors"),
    [
        (("launcher", "list"), ">&-", 0, ""),
        (("launcher", "--help"), ">&-", 0, ""),
        (("launcher", "logs", "job", "-f"), ">&- <&-", 0, ""),
        (("launcher", "logs", "job"), ">/dev/full", 74, FULL),
        (("launcher", "--help"), ">/dev/full", 74, FULL),
        (("launcher", "status", "none"), "2>&-", 4, ""),
        (("launcher", "status", "none"), "2>/dev/full", 4, ""),
        (("trainer", "--help"), ">&- 2>&- <&-", 0, ""),
        (("trainer", "ranktable", "check", "--help"), ">/dev/full", 1, TRAINER_FULL),
        (("trainer", "env", "--json"), ">/dev/full", 1, TRAINER_FULL),
        (("trainer", "--nope"), "2>/dev/full", 2, ""),
        (("trainer", "--data-path", "none"), ">&- 2>&-", 2, ""),
    ],
)
def test_a_closed_or_full_stream_gives_the_documented_code(
    runner: JobRunner, words: tuple[str, ...], redirection: str, code: int, errors: str
) -> None:
    runner.run_to_end("say(0, 'x')")
    result = run(words, redirection, runner.environ)
    assert (result.returncode, result.stdout, result.stderr) == (code, "", errors)


def test_a_working_folder_that_was_removed_is_named(tmp_path: Path) -> None:
    shell = f'mkdir "{tmp_path}/gone"; cd "{tmp_path}/gone"; rmdir "{tmp_path}/gone"; exec "$0" "$@"'
    root = Path(__file__).parents[2]
    words = (sys.executable, str(root / "trainer/shared/start.py"), "trainer.cli", "--data-path", str(tmp_path))
    result = subprocess.run(("sh", "-c", shell, *words), capture_output=True, text=True, check=False)
    error = "error: the working folder has been removed: change to another folder\n"
    assert (result.returncode, result.stdout, result.stderr) == (2, "", error)


@pytest.mark.parametrize("program", ["trainer", "launcher"])
def test_a_closed_pipe_behind_a_help_page_gives_the_documented_code(program: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    help_page = [sys.executable, "-m", program, "--help"]
    result = subprocess.run(help_page, stdout=writer, stderr=subprocess.PIPE, timeout=240, check=False)
    os.close(writer)
    assert (result.returncode, result.stderr) == (141, b"")


def test_a_job_is_submitted_and_runs_without_any_stream(runner: JobRunner, few_digits: Path) -> None:
    options = {**SMALL, "--mode": "performance", "--steps": "2", "--warmup-steps": "1", "--npus": "1"}
    words = ["launcher", "submit", "--backend", "local", "--name", "quiet", "--data-path", str(few_digits)]
    words += [word for option in options.items() for word in option]
    assert run(words, ">&- 2>&- <&-", runner.environ).returncode == 0
    assert runner.jobs.get(JobRef("local", "quiet")).phase is Phase.SUCCEEDED
    assert b" result mode=performance " in runner.log(JobRef("local", "quiet"))


@pytest.mark.parametrize("redirection", [">/dev/full", ">&-"])
def test_a_trainer_without_standard_output_goes_on_in_its_files(
    runner: JobRunner, few_digits: Path, redirection: str
) -> None:
    options = {**SMALL, "--mode": "performance", "--steps": "2", "--warmup-steps": "1"}
    words = ["trainer", "--data-path", str(few_digits), "--run-name", "run"]
    result = run([*words, *(word for option in options.items() for word in option)], redirection, runner.environ)
    assert (result.returncode, result.stderr) == (0, "")
    assert " result mode=performance " in (runner.home / "output" / "run" / "0" / "console-1.log").read_text()
