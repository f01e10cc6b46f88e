"""The pods of a cluster's job as processes: failures use up its retries, stops do not, and stops make progress.

The launcher's pod template sets the same variables; tests/cluster/test_retries.py has the same on a real cluster.
"""

import functools
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.local.conftest import train
from tests.local.resumable_runs import BackgroundTrainer, recipe
from trainer.checkpoint.reading import list_checkpoints, step_of
from trainer.shared.errors import NO_RETRY, RESUMABLE


def pod(job: str, retries: int) -> dict[str, str]:
    return {"POD_JOB_UID": job, "POD_RETRIES": str(retries)}


def has_workers(trainer: BackgroundTrainer, _output: str) -> bool:
    return bool(trainer.workers())


def records(run: Path) -> list[dict[str, Any]]:
    paths = sorted(run.glob("attempt*.json"), key=lambda path: (len(path.name), path.name))
    return [json.loads(path.read_text()) for path in paths]


def test_a_job_that_fails_again_and_again_ends_with_the_code_that_no_kind_tries_again(
    tmp_path: Path, few_digits: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(few_digits, data, symlinks=True)
    bad = min((data / "val").rglob("*.jpg"))
    bad.unlink()
    bad.write_bytes(b"not an image")
    options = recipe("--resume", "auto", "--epochs", "1")
    tries = [train(tmp_path, *options, data=data, environ=pod("first", 1)) for _ in range(3)]
    assert [one.code for one in tries] == [1, NO_RETRY, NO_RETRY], [one.stdout + one.stderr for one in tries]
    assert "no retry: --retries 1 of this job are used up" in tries[1].stdout
    assert str(bad) in tries[1].stdout.splitlines()[-1], "the last line has the failure's own cause"
    (error,) = tries[2].stderr.splitlines()
    assert error.startswith(f"error: {tries[2].run}: no retry of --retries 1 is left: attempts 1, 2 failed")
    assert [record["try_ended"] for record in records(tries[2].run)] == ["failed", "failed"]
    # The same run in a job that the user submits again has its own retries.
    assert train(tmp_path, *options, data=data, environ=pod("second", 1)).code == 1


def test_a_run_that_is_stopped_at_each_start_says_so_and_then_takes_a_step_before_it_stops(
    tmp_path: Path, few_digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in pod("stopped", 0).items():
        monkeypatch.setenv(name, value)
    steps, outputs = [], []
    for _ in range(3):
        trainer = BackgroundTrainer(tmp_path, few_digits, "--resume", "auto", "--npus", "2", name="run")
        # A worker takes seconds until it can stop after a step.
        assert trainer.wait_for(functools.partial(has_workers, trainer)), trainer.output
        trainer.signal(signal.SIGTERM)
        assert trainer.wait() == RESUMABLE, trainer.output
        outputs.append(trainer.output)
        newest = list_checkpoints(tmp_path / "run" / "checkpoints")[:1]
        steps.append(step_of(newest[0]) if newest else 0)
    assert steps[:2] == [0, 0]
    assert (steps[2] or 0) > 0, outputs[2]
    assert "the last 2 tries of this job were stopped at the step at which they began" in outputs[2]
    assert not any("were stopped at the step" in output for output in outputs[:2])
    assert {record["try_ended"] for record in records(tmp_path / "run")} == {"stopped"}
