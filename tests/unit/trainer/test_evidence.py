"""The evidence that a run keeps of its faults is within a limit, says how workers ended, and never costs the run."""

import json
import signal
from pathlib import Path

import pytest

from trainer.run.evidence import begin_evidence, keep_ends
from trainer.shared.container import oom_kills
from trainer.supervisor.failure_cause import WorkerEnd
from trainer.supervisor.output import Tagger


def _fill(run: Path, attempt: int, node: int, size: int) -> Path:
    folder = run / f"evidence/attempt-{attempt}/node-{node}"
    (folder / "process_log/rank-0/debug/plog").mkdir(parents=True)
    (folder / "process_log/rank-0/debug/plog/plog-7_20260101.log").write_bytes(b"x" * size)
    return folder


@pytest.mark.parametrize(
    ("sizes", "kept"),
    [
        ([], []),
        ([90], [1]),
        ([90, 90], [1, 2]),
        ([90, 90, 90], [2, 3]),
        ([10, 50, 50, 900], [2, 3, 4]),
        ([10, 300, 50, 900], [3, 4]),
        ([1, *[10] * 11], [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
    ],
)
def test_the_oldest_evidence_goes_first_and_the_last_attempts_stays(
    tmp_path: Path, sizes: list[int], kept: list[int]
) -> None:
    own = {number: _fill(tmp_path, number, 1, size) for number, size in enumerate(sizes, start=1)}
    others = [_fill(tmp_path, number, 0, 1000) for number in own]
    folder = begin_evidence(tmp_path, len(sizes) + 1, 1, most_bytes=100)
    assert folder == tmp_path / f"evidence/attempt-{len(sizes) + 1}/node-1"
    assert [number for number, path in own.items() if path.exists()] == kept
    assert all(path.exists() for path in others), "each node clears only its own"


def test_the_environment_of_an_attempt_is_there_from_its_beginning(tmp_path: Path) -> None:
    folder = begin_evidence(tmp_path, 2, 1, environment="{}")
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == {
        "evidence/attempt-2/node-1/environment.json"
    }
    assert (folder / "environment.json").read_text() == "{}\n"
    folder.parent.with_name("attempt-3").write_text("in the way")
    begin_evidence(tmp_path, 3, 1, environment="{}")


def _end(rank: int, code: int) -> WorkerEnd:
    return WorkerEnd(rank, f"npu:{rank}", Tagger("rank"), code, pid=100 + rank, core_dumped=code == -signal.SIGSEGV)


def test_a_failed_attempt_keeps_how_its_workers_ended_and_canns_traces_of_them(tmp_path: Path) -> None:
    traces = tmp_path / "home/ascend/atrace"
    for name in ("trace_101_101_20260101", "trace_999_999_20260101", "trace_1010_1010_20260101"):
        (traces / name / "stackcore_event").mkdir(parents=True)
        (traces / name / "stackcore_event/stackcore_tracer_11.txt").write_text("stack")
    folder = tmp_path / "run/evidence/attempt-1/node-0"
    keep_ends(folder, [_end(0, 0), _end(1, -signal.SIGSEGV)], kills_before=oom_kills(), home=tmp_path / "home")
    content = json.loads((folder / "ends.json").read_text())
    whole, crashed = content["workers"]
    assert (whole["exit_code"], whole["signal"], whole["cause"]) == (0, None, None)
    assert (crashed["rank"], crashed["pid"], crashed["signal"]) == (1, 101, signal.SIGSEGV)
    assert crashed["core_dumped"]
    assert crashed["cause"] == "killed by SIGSEGV"
    assert content["oom_kills"] == 0
    assert content["core_pattern"]
    moved = folder / "atrace/rank-1/trace_101_101_20260101/stackcore_event/stackcore_tracer_11.txt"
    assert moved.read_text() == "stack"
    assert sorted(path.name for path in traces.iterdir()) == ["trace_1010_1010_20260101", "trace_999_999_20260101"]


def test_evidence_that_cannot_be_kept_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "evidence").write_text("a file in the way")
    folder = begin_evidence(tmp_path, 2, 0)
    keep_ends(folder, [_end(0, 1)], kills_before=0, home=tmp_path)
    assert (tmp_path / "evidence").read_text() == "a file in the way"


def test_processes_that_the_kernel_killed_for_want_of_memory_are_counted(tmp_path: Path) -> None:
    """A container sees its own control group at the root of the mount."""
    (tmp_path / "cgroup").write_text("0::/\n")
    group = tmp_path / "sys"
    group.mkdir()
    (tmp_path / "mountinfo").write_text(f"29 24 0:26 / {group} ro,nosuid - cgroup2 cgroup rw\n")
    assert oom_kills(tmp_path) == 0
    (group / "memory.events").write_text("low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 1\n")
    assert oom_kills(tmp_path) == 2
