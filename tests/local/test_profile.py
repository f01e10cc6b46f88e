"""A running job is profiled: its trace comes into the run's folder, and its figures stay the same, bit for bit."""

import gzip
import json
import resource
import signal
import subprocess
from pathlib import Path

import psutil

from launcher.jobs import JobRef
from tests.documents import one_document
from tests.local.conftest import small_options
from tests.local.job_runner import JobRunner, wait_until
from trainer.shared.profiles import PROFILE_REQUEST

RECIPE = ("--mode", "full", "--lr", "1e-3", "--log-interval", "5")


def _submit(runner: JobRunner, data: Path, *words: str, name: str = "job") -> Path:
    """Start a job; return its run's folder, which is there."""
    options = small_options("--data-path", str(data), "--name", name, *words)
    submitted = runner.launch("submit", "--backend", "local", "--detach", *options)
    assert submitted.returncode == 0, submitted.stderr
    run = runner.home / "output" / name
    wait_until((run / "config.yaml").exists)
    return run


def _metrics(run: Path, kind: str) -> list[dict[str, object]]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: row[key] for key in row if key != "time"} for row in rows if row["kind"] == kind]


def test_a_rank_of_two_is_profiled_and_every_figure_stays(runner: JobRunner, few_digits: Path) -> None:
    run = _submit(runner, few_digits, "--npus", "2", "--epochs", "1", *RECIPE)
    profiled = runner.launch("profile", "job", "--steps", "3", "--rank", "1", "--json")
    assert profiled.returncode == 0, profiled.stderr
    document = one_document(profiled.stdout, "Profile")
    assert (document["rank"], document["steps"], len(document["operators"])) == (1, 3, 3)
    trace = Path(document["trace"])
    assert trace.is_relative_to(run / "profiles")
    with gzip.open(trace) as file:
        assert len(json.load(file)["traceEvents"]) > 1000
    assert runner.launch("wait", "job").returncode == 0
    assert " trace=" in runner.launch("logs", "job", "--rank", "1").stdout
    plain = _submit(runner, few_digits, "--npus", "2", "--epochs", "1", *RECIPE, name="plain")
    assert runner.launch("wait", "plain").returncode == 0
    for kind in ("step", "eval"):
        assert _metrics(run, kind) == _metrics(plain, kind)
    ended = runner.launch("profile", "job")
    assert (ended.returncode, ended.stderr) == (
        6,
        "error: job job has ended (Succeeded): only a job that trains can be profiled\n",
    )
    assert runner.launch("profile", "none").returncode == 4


def test_a_full_disk_a_second_request_ctrl_c_and_a_killed_worker_are_met_and_the_run_goes_on(
    runner: JobRunner, few_digits: Path
) -> None:
    run = _submit(runner, few_digits, "--npus", "1", "--restarts", "1", "--epochs", "1000", *RECIPE)
    request = run / PROFILE_REQUEST
    missing = runner.launch("profile", "job", "--rank", "5")
    assert (missing.returncode, missing.stderr) == (4, "error: job job has no rank 5: its ranks are 0 to 0\n")

    worker = _worker(runner)
    worker.suspend()
    first = runner.launch_in_background("profile", "job", "--steps", "3")
    wait_until(request.exists)
    second = runner.launch("profile", "job")
    assert second.returncode == 6
    assert "has a request for a profile already (3 steps of rank 0): wait until" in second.stderr
    first.send_signal(signal.SIGINT)
    assert _ended(first) == (130, "interrupted: the request is withdrawn, and job job goes on")
    assert not request.exists()

    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    _, limit = resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (200_000, hard))
    full = runner.launch_in_background("profile", "job", "--steps", "3")
    wait_until(request.exists)
    worker.resume()
    reason = "rank 0 could not be profiled: the trace is not whole; is the disk full?"
    assert _ended(full) == (74, f"error: job job: {reason}; the job goes on")
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (limit, limit))
    assert [path.suffix for path in (run / "profiles").iterdir()] == [".json", ".json"], "no part of a trace stays"

    worker.suspend()
    waiting = runner.launch_in_background("profile", "job", "--steps", "3")
    wait_until(request.exists)
    worker.kill()
    assert _ended(waiting)[0] == 0
    assert _worker(runner).pid != worker.pid
    assert runner.launch("cancel", "job").stdout.startswith("job Cancelled")


def _worker(runner: JobRunner) -> psutil.Process:
    """Return the worker of the only rank."""
    trainer = runner.jobs.get(JobRef("local", "job")).details["trainer"]
    children = psutil.Process(trainer).children()
    return next(child for child in children if "trainer.worker.__main__" in child.cmdline())


def _ended(launcher: "subprocess.Popen[bytes]") -> tuple[int, str]:
    """Return its exit code, and the last line of its errors."""
    _, errors = launcher.communicate(timeout=180)
    return launcher.returncode, errors.decode().rpartition("\n")[0].rpartition("\n")[2]
