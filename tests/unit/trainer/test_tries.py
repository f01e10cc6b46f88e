"""Failures of a cluster's job are counted by the records of its attempts."""

import json
from pathlib import Path
from typing import Any

import pytest

from trainer.run.tries import ENDING, JobRetries, failed_tries, stops_in_vain
from trainer.shared.attempts import read_attempts
from trainer.shared.errors import NO_RETRY, NoRetryError, StoppedError, TrainerError

JOB = "uid-1"


def record(
    attempt: int, ending: str | None = None, *, step: int = 0, restarted: bool = False, job: str | None = JOB
) -> dict[str, Any]:
    checkpoint = f"checkpoints/step-{step:09d}" if step else None
    cause = 'rank=0 device=npu:0 cause="killed by SIGKILL"' if restarted else None
    end = {} if ending is None else {ENDING: ending, "cause": f'cause="of {attempt}"'}
    return {"attempt": attempt, "job": job, "checkpoint": checkpoint, "restarted_after": cause, **end}


def failed(*records: dict[str, Any], next_step: int = 0) -> list[int]:
    return [one.attempt for one in failed_tries(records, JOB, next_step=next_step)]


@pytest.mark.parametrize(
    ("records", "next_step", "expected"),
    [
        ([], 0, []),
        ([record(1, "failed"), record(2, "failed", step=4)], 8, [1, 2]),
        # Evictions, drains, preemptions and code 75, with progress and without.
        ([record(number, "stopped") for number in range(1, 20)], 0, []),
        ([record(1, "done")], 0, []),
        # Killed without a word: only if the next try begins where this one began.
        ([record(1)], 0, [1]),
        ([record(1)], 4, []),
        ([record(1), record(2, step=4), record(3, step=4), record(4, "failed", step=8)], 8, [2, 4]),
        ([record(1, "lost", step=4)], 4, [1]),
        ([record(1, "lost", step=4)], 5, []),
        # The newest checkpoint of a lost try could not be used.
        ([record(1, step=8)], 4, [1]),
        # Restarts in a pod belong to one try, and the last ending counts.
        ([record(1), record(2, restarted=True), record(3, "done", restarted=True)], 0, []),
        ([record(1), record(2, restarted=True), record(3, "failed", step=4, restarted=True)], 4, [3]),
        ([record(1), record(2, step=4, restarted=True)], 4, []),
        # An earlier job of this run, and runs outside of a cluster.
        ([record(1, "failed", job="uid-0"), record(2, "failed", job=None), record(3, "failed")], 0, [3]),
    ],
)
def test_failures_count_and_stops_do_not(records: list[dict[str, Any]], next_step: int, expected: list[int]) -> None:
    assert failed(*records, next_step=next_step) == expected


def write(run: Path, *records: dict[str, Any]) -> None:
    for item in records:
        name = "attempt.json" if item["attempt"] == 1 else f"attempt-{item['attempt']}.json"
        (run / name).write_text(json.dumps(item))


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_a_job_has_as_many_tries_as_retries_and_one(tmp_path: Path, limit: int) -> None:
    retries = JobRetries(JOB, limit)
    for attempt in range(1, limit + 2):
        assert retries.check_start(tmp_path, None) == 0
        write(tmp_path, record(attempt, "failed"))
        assert retries.are_used_up(tmp_path) == (attempt == limit + 1)
    (tmp_path / "attempt-9.json").write_text('{"attempt": 9, "jo')  # torn
    with pytest.raises(NoRetryError) as error:
        retries.check_start(tmp_path, None)
    assert error.value.exit_code == NO_RETRY
    text = str(error.value)
    assert f"no retry of --retries {limit} is left" in text
    assert f'the last one with cause="of {limit + 1}"' in text
    assert f"`submit --name {tmp_path.name} --resume auto`" in text
    assert "\n" not in text
    assert JobRetries("the next job of this run", limit).check_start(tmp_path, None) == 0


def test_a_start_notices_that_the_last_ones_were_stopped_in_vain(tmp_path: Path) -> None:
    retries, newest = JobRetries(JOB, 3), tmp_path / "checkpoints" / "step-000000004"
    write(tmp_path, record(1, "stopped"), record(2, "stopped", step=4))
    assert retries.check_start(tmp_path, newest) == 0, "once can happen"
    write(tmp_path, record(3, "stopped", step=4))
    assert retries.check_start(tmp_path, newest) == 2
    assert retries.check_start(tmp_path, newest.with_name("step-000000005")) == 0
    write(tmp_path, record(4, "failed", step=4))
    assert stops_in_vain([record(1, "stopped"), record(2, "failed")], JOB, next_step=0) == 0


def test_a_try_that_ends_before_its_workers_spares_the_one_before_it(tmp_path: Path) -> None:
    """The try before it got further, to step 4, and then lost its node."""
    write(tmp_path, record(1))
    (tmp_path / "checkpoints" / "step-000000004").mkdir(parents=True)
    JobRetries(JOB, 1).count_early_end(tmp_path, 2, TrainerError("a disk"))
    assert failed(*map(dict, read_attempts(tmp_path)), next_step=4) == [2]
    with pytest.raises(NoRetryError, match="a disk; no retry of --retries 1 is left"):
        JobRetries(JOB, 1).count_early_end(tmp_path, 3, TrainerError("a disk"))


def test_a_try_that_is_stopped_before_its_workers_is_a_stop_in_vain(tmp_path: Path) -> None:
    for attempt in (1, 2):
        JobRetries(JOB, 0).count_early_end(tmp_path, attempt, StoppedError("stopped by SIGTERM"))
    assert JobRetries(JOB, 0).check_start(tmp_path, None) == 2


@pytest.mark.parametrize(
    "environ", [{}, {"POD_JOB_UID": "a"}, {"POD_RETRIES": "3"}, {"POD_JOB_UID": "a", "POD_RETRIES": "x"}]
)
def test_outside_of_a_launchers_pod_nothing_is_counted(environ: dict[str, str]) -> None:
    assert JobRetries.of_pod(environ) is None


def test_the_template_tells_a_pod_its_job_and_its_retries() -> None:
    assert JobRetries.of_pod({"POD_JOB_UID": "a", "POD_RETRIES": "0"}) == JobRetries("a", 0)
