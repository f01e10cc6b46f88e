"""A disk that is full costs warnings and at most one checkpoint, not the run; and it is never taken for a success."""

import json
import re
import resource
from pathlib import Path

from tests.local.conftest import Finished, small, train
from tests.local.resumable_runs import Started
from trainer.checkpoint.files import newest_valid


def _cause(done: Finished) -> str:
    """The reason in the last line, which is the only one there is."""
    assert "Traceback" not in done.stdout + done.stderr
    assert "] failed rank=" in done.stdout.splitlines()[-1], "all ranks have agreed on it"
    return done.stdout.splitlines()[-1]


def test_a_run_whose_records_find_no_room_goes_on_to_its_end_and_is_no_success(digits: Path, tmp_path: Path) -> None:
    options = ("--npus", "2", "--epochs", "1", "--batch-size", "8", "--log-interval", "1")
    done = train(tmp_path, *small(*options), data=digits, file_limit=7500)
    assert done.code == 1
    metrics = done.run / "metrics.jsonl"
    assert f"{metrics}: cannot be written: File too large" in _cause(done)
    warnings = [line for line in done.stdout.splitlines() if "wait in memory" in line]
    assert len(warnings) == 2, "one for the metrics and one for TensorBoard's file"
    assert len(done.events("step")) == 89, "it went on to the end of its epoch"
    assert len(done.events("eval")) == 1


def test_a_timed_run_whose_records_find_no_room_is_no_success(digits: Path, tmp_path: Path) -> None:
    """It has no checkpoints, which would find out."""
    options = ("--mode", "performance", "--warmup-steps", "0", "--steps", "90", "--batch-size", "4", "--lr", "0.001")
    done = train(tmp_path, *small(*options), data=digits, file_limit=7500)
    assert done.code == 1
    assert f"{done.run / 'metrics.jsonl'}: cannot be written: File too large" in _cause(done)
    assert len(done.events("result")) == 1, "it went on to its end"


def test_a_disk_that_has_room_again_costs_a_run_nothing_but_warnings(digits: Path, tmp_path: Path) -> None:
    run = Started(tmp_path, digits, "--steps", "20", "--checkpoint-every", "5", name="run")
    assert run.until(lambda said: "] step " in said)
    (worker,) = run.workers()
    _, most = resource.prlimit(worker, resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    assert run.until(lambda said: said.count("wait in memory") >= 2 and "is not saved: " in said)
    resource.prlimit(worker, resource.RLIMIT_FSIZE, (most, most))
    assert run.wait() == 0, run.said
    failed, mended = (
        re.findall(rf'text="(\S+): {what}', run.said) for what in ("cannot be written: .*memory", "is written again")
    )
    assert str(tmp_path / "run" / "metrics.jsonl") in failed
    assert sorted(failed) == sorted(set(failed)) == sorted(mended), "one line for each, and one when it is over"
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["global_step"] for line in lines if line["kind"] == "step"] == list(range(40))
    assert [line["epoch"] for line in lines if line["kind"] == "eval"] == [0, 1]
    newest = newest_valid(tmp_path / "run" / "checkpoints", on_refused=lambda path, why: None)
    assert newest is not None
    assert newest.content["progress"]["global_step"] == 40


def test_a_disk_without_room_for_a_checkpoint_stops_no_run_but_is_no_success(digits: Path, tmp_path: Path) -> None:
    options = ("--epochs", "1", "--steps", "2", "--checkpoint-every", "1")
    done = train(tmp_path, *small(*options), data=digits, file_limit=200_000)
    assert done.code == 1
    assert len(done.metrics("step")) == 2
    assert len(done.events("eval")) == 1
    assert "warning text=" in done.stdout
    assert f"{done.run / 'checkpoints'}: the run is done, but its last checkpoint could not be saved" in _cause(done)
    assert list((done.run / "checkpoints").iterdir()) == []


def test_a_full_disk_at_the_start_leaves_no_folder_behind(digits: Path, tmp_path: Path) -> None:
    done = train(tmp_path / "out", *small(), data=digits, file_limit=100)
    assert done.code == 2
    (line,) = done.stderr.splitlines()
    assert f"--output {tmp_path / 'out'}: cannot be written" in line
    assert list((tmp_path / "out").iterdir()) == []
