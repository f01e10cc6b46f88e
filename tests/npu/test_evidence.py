"""The log of CANN, here the stand-in's, is in the run's folder after each end of a process, whatever killed it.

`PNAS_TEST_EVIDENCE_KILLS=10` kills each kind that often instead of once. The seed is printed;
`PNAS_TEST_KILL_SEED` sets it.
"""

import json
import os
import pickle
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.local.resumable_runs import BackgroundTrainer
from tests.npu.conftest import SHORT, Run

KILLS = int(os.environ.get("PNAS_TEST_EVIDENCE_KILLS", "1"))


def _plogs(run: Path, attempt: int, rank: int, kind: str) -> dict[int, str]:
    """Return the content of each file of CANN's log by the process that has written it."""
    folder = run / f"evidence/attempt-{attempt}/node-0/process_log/rank-{rank}/{kind}/plog"
    return {int(path.name.split("-")[1].split("_")[0]): path.read_text() for path in folder.glob("plog-*_*.log")}


@pytest.mark.parametrize("victim", ["a worker", "the supervisor", "all processes"])
def test_the_log_of_cann_is_there_after_a_kill(
    tmp_path: Path, few_digits: Path, capsys: pytest.CaptureFixture[str], on_npus: None, victim: str
) -> None:
    seed = int(os.environ.get("PNAS_TEST_KILL_SEED") or random.SystemRandom().randrange(2**32))
    draw = random.Random(seed)
    options = ("--device", "npu", "--npus", "2", "--epochs", "100", "--log-interval", "1")
    for attempt in range(1, KILLS + 1):
        trainer = BackgroundTrainer(tmp_path, few_digits, *options, "--resume", "auto", name="run")
        assert trainer.wait_for(lambda output: "] step " in output), trainer.output
        time.sleep(draw.uniform(0, 0.5))
        workers = trainer.workers()
        trainer.kill(
            trainer=victim != "a worker",
            workers={"a worker": [draw.choice(workers)], "the supervisor": [], "all processes": workers}[victim],
        )
        trainer.wait()
        for rank, pid in enumerate(workers):
            logs = _plogs(tmp_path / "run", attempt, rank, "run")
            assert f"attr init success, device_id={rank}" in logs[pid], (victim, seed, logs)
        if victim == "a worker":
            ends = json.loads((tmp_path / f"run/evidence/attempt-{attempt}/node-0/ends.json").read_text())
            assert signal.SIGKILL in [worker["signal"] for worker in ends["workers"]]
            assert [worker["pid"] for worker in ends["workers"]] == workers
    with capsys.disabled():
        sys.stdout.write(f"\n{victim} killed: CANN's log found {KILLS}/{KILLS}, seed {seed}\n")


def test_the_last_words_of_cann_about_a_failed_device_are_there(run: Run) -> None:
    done = run("evident", *SHORT, "--precision", "fp32", "--npus", "2", environ={"NPU_EMULATED_FAIL": "1:20"})
    assert done.code == 1, done.stdout
    (log,) = _plogs(done.run, 1, 1, "debug").values()
    assert "[ERROR]" in log
    assert "hbm Multi-bit ECC error" in log
    assert not _plogs(done.run, 1, 0, "debug"), "no error on the other device"


def test_what_was_in_a_devices_memory_is_there_when_it_ran_out(run: Run) -> None:
    done = run("large", *SHORT, environ={"NPU_EMULATED_HBM_MIB": "4"})
    assert done.code == 1, done.stdout
    (snapshot,) = (done.run / "evidence/attempt-1/node-0").glob("memory_*.pickle")
    (segment,) = pickle.loads(snapshot.read_bytes())
    assert 0 < segment["allocated_size"] <= 4 << 20
    (log,) = _plogs(done.run, 1, 0, "debug").values()
    assert "rtMalloc failed" in log


def test_a_place_that_the_administrator_has_chosen_stays(run: Run, tmp_path: Path) -> None:
    done = run("elsewhere", *SHORT, environ={"ASCEND_PROCESS_LOG_PATH": str(tmp_path / "logs")})
    assert done.code == 0, done.stdout
    assert list((tmp_path / "logs/run/plog").glob("plog-*"))
    assert [path.name for path in (done.run / "evidence").rglob("*.*")] == ["environment.json"]


def test_a_log_that_cann_cannot_write_costs_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "full").write_text("")
    done = run("unwritable", *SHORT, environ={"ASCEND_PROCESS_LOG_PATH": str(tmp_path / "full/logs")})
    assert done.code == 0, done.stdout
