"""The folder of a run with real trainers: one at a time, and the next one continues after a kill."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.local.conftest import small_options, train
from tests.local.resumable_runs import BackgroundTrainer

LONG = ("--epochs", "1000", "--log-interval", "1")
LONG_EPOCH = ("--batch-size", "2", "--lr", "0.001")
"""No checkpoint is due for many seconds. At the usual learning rate such small batches would diverge by then."""


@contextmanager
def _training(output: Path, data: Path, *options: str) -> Iterator["subprocess.Popen[str]"]:
    """Start a trainer and wait for its first step; kill it at the end."""
    command = (sys.executable, "-m", "trainer", "--data-path", str(data), "--output", str(output), "--run-name", "run")
    with subprocess.Popen(
        (*command, *small_options(*LONG, *options)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert any(" step epoch=0 " in line for line in process.stdout), "it ended before its first step"
            yield process
        finally:
            process.kill()


def test_a_second_run_in_a_folder_is_refused_and_the_next_one_continues_after_a_kill(
    digits: Path, tmp_path: Path
) -> None:
    short = small_options("--resume", "auto", "--epochs", "1", "--steps", "2")
    train(tmp_path, "--version")  # has torch imported by the process that forks trainers
    with _training(tmp_path, digits, *LONG_EPOCH) as owner:
        lock = json.loads((tmp_path / "run" / "run.lock").read_text())
        second = train(tmp_path, *short, data=digits)
        assert second.code == 6
        assert f"in use by process {owner.pid} on {os.uname().nodename}, since {lock['started']}" in second.stderr
        assert second.stderr.count("\n") == 1
        owner.kill()
        owner.wait()
        after = train(tmp_path, *short, data=digits)
    assert after.code == 0, after.stdout + after.stderr
    assert f"taken over from process {owner.pid}" in after.stdout
    assert not (tmp_path / "run" / "run.lock").exists()
    assert (tmp_path / "run" / "0" / "console-1.log").stat().st_size
    assert " result " in (tmp_path / "run" / "0" / "console-2.log").read_text()
    assert [row["global_step"] for row in after.metrics("step")] == [0, 1]
    replaced = [json.loads(line) for line in (tmp_path / "run" / "metrics-replaced.jsonl").read_text().splitlines()]
    assert replaced[0]["global_step"] == 0
    assert {row["attempt"] for row in replaced} == {2}


@pytest.mark.parametrize("removed", [False, True])
def test_an_owner_that_has_lost_its_folder_ends_at_once_and_writes_no_more(
    digits: Path, tmp_path: Path, removed: bool
) -> None:
    # The epoch is longer than the five seconds after which the owner looks at its lock.
    with _training(tmp_path, digits, *LONG_EPOCH) as owner:
        lock = tmp_path / "run" / "run.lock"
        other_lock = json.dumps({**json.loads(lock.read_text()), "host": "other-node", "token": "another"})
        if removed:
            (tmp_path / "run").rename(tmp_path / "elsewhere")
        else:
            (tmp_path / "new").write_text(other_lock)
            (tmp_path / "new").replace(lock)
        stdout, stderr = owner.communicate()
    cause = (
        f"{tmp_path / 'run'}: this folder was removed or renamed" if removed else f"{lock}: lost to process {owner.pid}"
    )
    assert owner.returncode == 6
    assert f"error: {cause}" in stderr
    assert f'] failed cause="{cause}' in stdout.splitlines()[-1], "no rank is blamed"
    if removed:
        return
    assert lock.read_text() == other_lock
    assert not list((tmp_path / "run").rglob("*.safetensors")), "the old owner wrote into the folder of the new one"


def test_an_earlier_pod_of_the_same_job_saves_and_hands_the_folder_over(
    few_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So does a pod that trains on while its node is cut off from the cluster."""
    monkeypatch.setenv("POD_NAMESPACE", "training")
    monkeypatch.setenv("POD_JOB", "jobs.batch/run")
    words = ("--epochs", "1000", "--steps", "20", "--resume", "auto")
    earlier = BackgroundTrainer(tmp_path, few_digits, *words, name="run")
    try:
        assert earlier.wait_for(lambda output: "] step " in output)
        lock = tmp_path / "run" / "run.lock"
        lock.write_text(json.dumps({**json.loads(lock.read_text()), "host": "other-node"}))
        later = BackgroundTrainer(tmp_path, few_digits, *words, name="run")
        try:
            assert earlier.wait() == 75, earlier.output
            assert "a later pod of this job waits" in earlier.output
            assert later.wait_for(lambda output: "] step " in output), later.output
            assert "other-node, an earlier pod of this job, still works in this folder" in later.output
            assert "resumed bit_exact=yes" in later.output
        finally:
            later.signal(signal.SIGKILL)
            later.wait()
    finally:
        earlier.signal(signal.SIGKILL)
        earlier.wait()
    rows = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    steps = [row["global_step"] for row in rows if row["kind"] == "step"]
    assert steps == list(range(len(steps)))
    assert not (tmp_path / "run" / "metrics-replaced.jsonl").exists(), "no step was taken twice"


def test_a_stop_before_any_worker_leaves_nothing_behind_and_is_resumable(tmp_path: Path, digits: Path) -> None:
    run = train(tmp_path, *small_options("--epochs", "1", "--steps", "1"), data=digits).run
    # A trainer watches the lock of another machine for a while: the stop arrives in this time.
    lock = run / "run.lock"
    lock.write_text("{}")
    command = (sys.executable, "-m", "trainer", "--data-path", str(digits), "--output", str(tmp_path))
    with subprocess.Popen(
        (*command, "--run-name", "run", "--resume", "auto", *small_options()),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("environment ")
        assert "watching" in process.stdout.readline()
        process.terminate()
        _, stderr = process.communicate()
    assert process.returncode == 75
    assert stderr.startswith("error: stopped by SIGTERM while no worker was running")
    assert lock.read_text() == "{}"
    assert not list(run.glob(".run.lock*"))


def test_a_refused_start_changes_nothing(digits: Path, tmp_path: Path) -> None:
    run = train(tmp_path, *small_options("--epochs", "1", "--steps", "1"), data=digits).run
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for options in (("--resume", "auto", "--data-path", str(tmp_path)), ("--batch-size", "33")):
        for more in ((), ("--dry-run",)):
            assert train(tmp_path, *small_options(*options), *more, data=digits).code in (2, 6)
    dry = train(tmp_path, *small_options("--resume", "auto", "--epochs", "2"), "--dry-run", data=digits)
    assert (dry.code, dry.stdout.splitlines()[-1]) == (0, "everything fits together; nothing was started")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
