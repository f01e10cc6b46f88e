"""Faults of an NPU: each is one line in plain words, followed by the library's own words."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.local.conftest import TrainerResult, train
from tests.local.resumable_runs import recipe
from tests.npu.conftest import SHORT, Run
from tests.npu.machine import MISSING_DRIVER, unloadable_torch_npu

FP32 = ("--precision", "fp32")


def _cause(done: TrainerResult) -> str:
    """Return the trainer's line with the cause of a failed run, which must not print a traceback."""
    assert done.code == 1, done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert " failed rank=" in last or last.startswith("[node 0")
    return next(line for line in reversed(done.stdout.splitlines()) if " failed rank=" in line)


def test_out_of_memory_names_the_options_to_lower(run: Run) -> None:
    done = run("full", *SHORT, environ={"NPU_EMULATED_HBM_MIB": "4"})
    assert "the device is out of memory (tried to allocate" in _cause(done)
    assert "lower --batch-size" in _cause(done)
    assert "NPU out of memory. Tried to allocate" in done.stdout


def test_a_failed_device_is_named_not_the_ranks_that_lose_their_peer(run: Run) -> None:
    options = ("--npus", "2", "--restarts", "3")
    done = run("failed", *SHORT, *FP32, *options, environ={"NPU_EMULATED_FAIL": "1:20"})
    assert " restart attempt=" not in done.stdout, "the pod ends, so that the platform can take the device out"
    cause = _cause(done)
    assert "rank=1 device=npu:1" in cause
    assert "the device failed (hbm Multi-bit ECC error)" in cause
    assert "ERR02200 DIST call hccl api failed." in done.stdout


def test_a_rank_that_hangs_in_a_collective_is_named_by_the_watchdog(run: Run) -> None:
    stuck = {"NPU_EMULATED_HANG": "1:20"}
    done = run("hung", *SHORT, *FP32, "--npus", "2", "--stall-timeout-s", "6", "--grace-s", "1", environ=stuck)
    assert done.code == 1, done.stdout
    assert "peers" in _cause(done)


def test_a_timeout_of_a_collective_is_named(run: Run) -> None:
    stuck = {"NPU_EMULATED_HANG": "1:20", "HCCL_EXEC_TIMEOUT": "4"}
    done = run("timed-out", *SHORT, *FP32, "--npus", "2", "--grace-s", "1", environ=stuck)
    assert "rank=0 device=npu:0" in _cause(done)
    assert "HCCL waited too long for a peer (EI0002)" in _cause(done)


def test_a_missing_driver_is_named_before_the_librarys_words_and_matters_only_to_npus(
    few_digits: Path, tmp_path: Path, npus: dict[str, str]
) -> None:
    """Even without an import, torch loads torch_npu by itself, and that would end every process of the run."""
    words = MISSING_DRIVER
    environ = {**npus, **unloadable_torch_npu(tmp_path)}
    options = recipe("--device", "npu", "--npus", "1", *SHORT)
    done = train(tmp_path, *options, data=few_digits, name="unmounted", environ=environ)
    assert done.code == 2
    assert "Traceback" not in done.stdout + done.stderr
    lines = [line.partition("] ")[2] for line in done.stdout.splitlines() if line.startswith("[rank 0 npu:0 ")]
    assert lines[0].startswith("error --device npu: the NPU's driver is not in this container (libascend_hal.so: ")
    assert lines[1] == words
    verify = (sys.executable, "-m", "trainer", "data", "verify", str(few_digits))
    checked = subprocess.run(verify, env={**os.environ, **environ}, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, "a command that needs no NPU must work: " + checked.stdout + checked.stderr


def test_another_order_of_additions_changes_the_losses_a_little(run: Run) -> None:
    plain = run("plain", *SHORT, *FP32)
    other = run("reversed", *SHORT, *FP32, environ={"NPU_EMULATED_REDUCTIONS": "reversed"})
    forward, backward = ([row["loss"] for row in done.metrics("step")] for done in (plain, other))
    assert forward != backward
    # Each step multiplies what the one before it left.
    assert forward[:3] == pytest.approx(backward[:3], rel=1e-5)
    assert forward == pytest.approx(backward, rel=5e-3)


def test_an_overflow_that_only_a_flag_shows_skips_the_step(run: Run) -> None:
    """Behave like an Ascend 910A: fp16 stops at 65,504, and all gradients are finite."""
    saturating = {"NPU_EMULATED_INF_NAN": "0"}
    done = run("saturating", "--epochs", "1", "--steps", "8", "--npus", "2", environ=saturating)
    assert done.code == 0, done.stdout
    skipped = sum(int(step.get("skipped", 0)) for step in done.events("step"))
    overflows = done.stdout.count("Gradient overflow. Skipping step") // 2
    assert 0 < skipped == overflows < 8


def test_bf16_is_refused_if_the_device_does_not_have_it(run: Run) -> None:
    done = run("bf16", *SHORT, "--precision", "bf16", environ={"NPU_EMULATED_INF_NAN": "0"})
    assert done.code == 2
    assert "--precision bf16: Ascend910-emulated has no bfloat16" in done.stdout
