"""A full disk costs warnings and at most one checkpoint, not the run; such a run never counts as a success."""

import json
import re
import resource
from pathlib import Path

from tests.local.conftest import TrainerResult, small_options, train
from tests.local.resumable_runs import BackgroundTrainer
from trainer.checkpoint.reading import newest_valid


def _cause(result: TrainerResult) -> str:
    """Return the last line, which has the reason; check that it is the only reason."""
    assert "Traceback" not in result.stdout + result.stderr
    assert "] failed rank=" in result.stdout.splitlines()[-1], "all ranks agree on the reason"
    return result.stdout.splitlines()[-1]


def test_a_run_without_room_for_its_records_reaches_its_end_and_fails(digits: Path, tmp_path: Path) -> None:
    options = ("--npus", "2", "--epochs", "1", "--batch-size", "8", "--log-interval", "1")
    result = train(tmp_path, *small_options(*options), data=digits, file_limit=7500)
    assert result.code == 1
    metrics = result.run / "metrics.jsonl"
    assert f"{metrics}: cannot be written: File too large" in _cause(result)
    warnings = [line for line in result.stdout.splitlines() if "wait in memory" in line]
    assert len(warnings) == 2, "one for the metrics and one for TensorBoard's file"
    assert len(result.events("step")) == 89, "it went on to the end of its epoch"
    assert len(result.events("eval")) == 1


def test_a_timed_run_without_room_for_its_records_fails(digits: Path, tmp_path: Path) -> None:
    """A timed run writes no checkpoints, which would find the full disk."""
    options = ("--mode", "performance", "--warmup-steps", "0", "--steps", "90", "--batch-size", "4", "--lr", "0.001")
    result = train(tmp_path, *small_options(*options), data=digits, file_limit=7500)
    assert result.code == 1
    assert f"{result.run / 'metrics.jsonl'}: cannot be written: File too large" in _cause(result)
    assert len(result.events("result")) == 1, "it went on to its end"


def test_a_disk_with_room_again_costs_a_run_only_warnings(digits: Path, tmp_path: Path) -> None:
    run = BackgroundTrainer(tmp_path, digits, "--steps", "20", "--checkpoint-every", "5", name="run")
    assert run.wait_for(lambda output: "] step " in output)
    (worker,) = run.workers()
    _, limit = resource.prlimit(worker, resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    assert run.wait_for(lambda output: output.count("wait in memory") >= 2 and "is not saved: " in output)
    resource.prlimit(worker, resource.RLIMIT_FSIZE, (limit, limit))
    assert run.wait() == 0, run.output
    failures, recoveries = (
        re.findall(rf'text="(\S+): {message}', run.output)
        for message in ("cannot be written: .*memory", "is written again")
    )
    assert str(tmp_path / "run" / "metrics.jsonl") in failures
    assert sorted(failures) == sorted(set(failures)) == sorted(recoveries), (
        "one line for each file, and one at the recovery"
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["global_step"] for line in lines if line["kind"] == "step"] == list(range(40))
    assert [line["epoch"] for line in lines if line["kind"] == "eval"] == [0, 1]
    newest = newest_valid(tmp_path / "run" / "checkpoints", on_refused=lambda path, why: None)
    assert newest is not None
    assert newest.content["progress"]["global_step"] == 40


def test_a_disk_without_room_for_a_checkpoint_lets_the_run_finish_and_fail(digits: Path, tmp_path: Path) -> None:
    options = ("--epochs", "1", "--steps", "2", "--checkpoint-every", "1")
    result = train(tmp_path, *small_options(*options), data=digits, file_limit=200_000)
    assert result.code == 1
    assert len(result.metrics("step")) == 2
    assert len(result.events("eval")) == 1
    assert "warning text=" in result.stdout
    assert f"{result.run / 'checkpoints'}: the run is done, but its last checkpoint could not be saved" in _cause(
        result
    )
    assert list((result.run / "checkpoints").iterdir()) == []


def test_a_full_disk_at_the_start_leaves_no_folder_behind(digits: Path, tmp_path: Path) -> None:
    result = train(tmp_path / "out", *small_options(), data=digits, file_limit=100)
    assert result.code == 2
    (line,) = result.stderr.splitlines()
    assert f"--output {tmp_path / 'out'}: cannot be written" in line
    assert list((tmp_path / "out").iterdir()) == []
