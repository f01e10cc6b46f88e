"""The records of a run's attempts tell where each ran, how far it got, why it ended, and how long the gap was."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from trainer.records.attempts import reached_step, write_attempt
from trainer.run.history import MOST_LINES, begin_record, end_record, history_lines
from trainer.shared.attempts import attempt_history
from trainer.supervisor import Failure, Outcome

KILLED = Outcome(1, Failure(3, "npu:3", "killed by SIGKILL"), crashed=True)


def _train(run: Path, *steps: int) -> None:
    rows = [{"kind": "step", "global_step": step} for step in steps]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _begin(run: Path, number: int, **values: Any) -> dict[str, Any]:
    given = {"job": None, "nodes": 2, "checkpoint": None, "crash": None} | values
    record = begin_record(run, **given)
    write_attempt(run, number, record)
    return record


def test_a_run_tells_of_an_attempt_that_ended_and_of_one_that_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_NAME", "node1")
    first = _begin(tmp_path, 1)
    assert (first["gap_s"], first["steps_before"]) == (None, 0)
    _train(tmp_path, 40, 41)
    write_attempt(tmp_path, 1, {**first, **end_record(tmp_path, KILLED)})
    _begin(tmp_path, 2, checkpoint="checkpoints/step-000000040", crash="rank=3")
    _train(tmp_path, 60)
    now = (tmp_path / "metrics.jsonl").stat().st_mtime
    os.utime(tmp_path / "metrics.jsonl", (now + 3600, now + 3600))
    monkeypatch.setattr("time.time", lambda: now + 3720)
    third = _begin(tmp_path, 3, checkpoint="checkpoints/step-000000060")
    assert third["gap_s"] == 120, "since its last sign of life"
    failed, lost, running = attempt_history(tmp_path)
    assert (failed["steps"], failed["outcome"], failed["node"]) == (42, "failed", "node1")
    assert (lost["steps"], lost["outcome"]) == (61, "lost")
    assert "outcome" not in running
    lines = history_lines(tmp_path)
    assert lines[0].startswith("attempt n=1 host=")
    assert lines[0].endswith(' steps=42 outcome=failed rank=3 device=npu:3 cause="killed by SIGKILL"')
    assert " from=checkpoints/step-000000040 " in lines[1]
    assert 'cause="killed without a word' in lines[1]
    assert lines[2].endswith(" from=checkpoints/step-000000060 gap_s=120")


def test_a_trainer_that_ended_before_it_had_workers_says_so(tmp_path: Path) -> None:
    first = _begin(tmp_path, 1)
    write_attempt(tmp_path, 1, {**first, "try_ended": "failed", "cause": "node 1 did not come"})
    second = _begin(tmp_path, 2)
    write_attempt(tmp_path, 2, {**second, "try_ended": "stopped"})
    _begin(tmp_path, 3)
    failed, stopped, _ = history_lines(tmp_path)
    assert failed.endswith(' steps=0 outcome=failed cause="node 1 did not come"')
    assert stopped.endswith(" steps=0 outcome=resumable")


def test_only_the_latest_attempts_are_told(tmp_path: Path) -> None:
    for number in range(1, MOST_LINES + 11):
        write_attempt(tmp_path, number, {"outcome": "resumable"})
    lines = history_lines(tmp_path)
    assert len(lines) == MOST_LINES
    assert lines[0].startswith("attempt n=11 ")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"attempt": "one"}', "\xff"])
def test_damaged_records_and_metrics_cost_nothing(tmp_path: Path, text: str) -> None:
    _begin(tmp_path, 1)
    (tmp_path / "attempt-2.json").write_bytes(text.encode("latin-1"))
    (tmp_path / "metrics.jsonl").write_bytes(text.encode("latin-1"))
    assert reached_step(tmp_path) == 0
    assert [record["attempt"] for record in attempt_history(tmp_path)] == [1]
    assert _begin(tmp_path, 3)["steps_before"] == 0


def test_a_long_file_of_metrics_is_read_from_its_end(tmp_path: Path) -> None:
    _train(tmp_path, *range(20_000))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "global_step": 2')  # torn
    assert reached_step(tmp_path) == 20_000
