"""Captured steps on emulated NPUs give the bits of eager ones; PNAS_TEST_CAPTURED_STEPS=200 takes more of them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.local.conftest import train
from tests.local.resumable_runs import BackgroundTrainer, assert_same_run, recipe
from tests.npu.conftest import O2, Run

STEPS = int(os.environ.get("PNAS_TEST_CAPTURED_STEPS", "8"))
RESUMABLE = 75


@pytest.mark.parametrize(("precision", "ranks"), [("fp16", 1), ("bf16", 1), ("fp32", 2), ("O2", 2)])
def test_captured_steps_give_the_bits_of_eager_steps(
    npus: dict[str, str], tmp_path: Path, precision: str, ranks: int
) -> None:
    """With dropout, drop-path, mixing, an average, clipping, accumulation, parts of two sizes and skipped steps."""
    log, output = tmp_path / "calls", tmp_path / "outcomes.json"
    environ = {**os.environ, **npus, "OMP_NUM_THREADS": "1", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    job = ("--precision", precision, "--ranks", str(ranks), "--steps", str(STEPS), "--output", str(output))
    subprocess.run(
        [sys.executable, "-m", "tests.npu.captured_steps", *job],
        env={**environ, "NPU_EMULATED_LOG": str(log)},
        check=True,
    )
    outcomes: dict[str, dict[str, Any]] = json.loads(output.read_text())
    eager, captured = outcomes["off"], outcomes["on"]
    # Four parts, then the exchange of gradients, which only then waits for peers, and the update.
    exchange = "peers" if ranks > 1 else "device"
    assert captured.pop("marks") == ["data", *["device"] * 4, exchange, "device", "host", "peers", "host"]
    eager.pop("marks")
    assert eager == captured
    assert sum(captured["skipped"]) >= STEPS // 4
    captures = sum("capture_begin(" in line for line in log.read_text().splitlines())
    assert captures == ranks * (2 + 2), "forward and backward of both sizes of parts, check, update"


@pytest.mark.usefixtures("on_npus")
def test_a_stopped_and_then_killed_run_continues_bit_for_bit(run: Run, few_digits: Path, tmp_path: Path) -> None:
    captured = (*O2[:-4], "--steps", "24", "--precision", "O2", "--graph", "on")
    whole = run("captured", *captured)
    assert whole.code == 0, whole.stdout
    assert "cannot capture" not in whole.stdout
    again = (*captured, "--resume", "auto")
    stopped = BackgroundTrainer(tmp_path, few_digits, *captured, name="stopped")
    assert stopped.wait_for(lambda output: "] step epoch=0" in output), stopped.output
    stopped.signal(signal.SIGTERM)
    assert stopped.wait() == RESUMABLE, stopped.output
    killed = BackgroundTrainer(tmp_path, few_digits, *again, name="stopped")
    assert killed.wait_for(lambda output: "] checkpoint step=" in output), killed.output
    killed.kill(trainer=True, workers=killed.workers())
    killed.wait()
    resumed = train(tmp_path, *recipe(*again), data=few_digits, name="stopped")
    assert resumed.code == 0, resumed.stdout
    assert_same_run(whole.run, resumed.run, last_step=24)
