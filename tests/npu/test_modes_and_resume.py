"""Every mode on one, two and eight emulated NPUs; stopped and killed runs continue bit for bit."""

import signal
from pathlib import Path

import pytest

from tests.local.conftest import TrainerResult, train
from tests.local.resumable_runs import BackgroundTrainer, assert_same_run, recipe
from tests.npu.conftest import O2, SHORT, Run

RESUMABLE = 75
FP16 = ("--device", "npu", "--npus", "1", "--epochs", "1", "--steps", "48", "--precision", "fp16")


def test_o2_without_apex_is_logged_and_its_loss_scale_adapts(in_o2: TrainerResult) -> None:
    assert in_o2.events("start")[0]["precision"] == "O2-native"
    skipped = sum(int(step.get("skipped", 0)) for step in in_o2.events("step"))
    assert 0 < skipped < 6, "a first scale of 65,536 is too large for fp16, and some halvings are enough"
    assert skipped == in_o2.stdout.count("[rank 0 npu:0 #") - _other_lines(in_o2)


def _other_lines(done: TrainerResult) -> int:
    """Return the number of rank 0's lines that are not about an overflow."""
    lines = [line for line in done.stdout.splitlines() if line.startswith("[rank 0 ")]
    return sum("Gradient overflow. Skipping step" not in line for line in lines)


@pytest.mark.usefixtures("on_npus")
def test_sigterm_saves_and_ends_with_75_and_the_run_continues_bit_for_bit(
    few_digits: Path, tmp_path: Path, in_o2: TrainerResult
) -> None:
    stopped = BackgroundTrainer(tmp_path, few_digits, *O2, name="stopped")
    assert stopped.wait_for(lambda output: "] step epoch=0" in output), stopped.output
    stopped.signal(signal.SIGTERM)
    assert stopped.wait() == RESUMABLE, stopped.output
    resumed = train(tmp_path, *recipe(*O2, "--resume", "auto"), data=few_digits, name="stopped")
    assert resumed.code == 0, resumed.stdout
    assert_same_run(in_o2.run, resumed.run, last_step=12)


@pytest.mark.usefixtures("on_npus")
def test_a_killed_run_continues_bit_for_bit_from_its_last_checkpoint(
    run: Run, few_digits: Path, tmp_path: Path
) -> None:
    whole = run("fp16", *FP16)
    assert whole.code == 0, whole.stdout
    assert whole.events("start")[0]["precision"] == "fp16"
    killed = BackgroundTrainer(tmp_path, few_digits, *FP16, name="killed")
    assert killed.wait_for(lambda output: "] checkpoint step=" in output), killed.output
    killed.kill(trainer=True, workers=killed.workers())
    killed.wait()
    resumed = train(tmp_path, *recipe(*FP16, "--resume", "auto"), data=few_digits, name="killed")
    assert resumed.code == 0, resumed.stdout
    assert "goes on from" in resumed.stdout
    assert_same_run(whole.run, resumed.run, last_step=48)


def test_a_run_can_continue_in_another_precision(run: Run, in_o2: TrainerResult) -> None:
    longer = ("--npus", "2", "--epochs", "2", "--steps", "2", "--precision", "fp32", "--resume", str(in_o2.run))
    done = run("wider", *longer)
    assert done.code == 0, done.stdout
    (resumed,) = done.events("resumed")
    assert resumed["bit_exact"] == "no"


def test_finetuning_and_evaluation_start_from_trained_weights(run: Run, in_o2: TrainerResult) -> None:
    best = ("--weights", str(in_o2.run / "checkpoints/best.safetensors"), "--npus", "1")
    scored = run("scored", *best, "--mode", "eval", "--precision", "fp32")
    assert scored.code == 0, scored.stdout
    (before,), (after,) = in_o2.events("result"), scored.events("result")
    assert (after["top1"], after["images"]) == (before["top1"], "78")
    tuned = run("tuned", *best, "--mode", "finetune", *SHORT)
    assert tuned.code == 0, tuned.stdout


def test_eight_devices_time_their_steps_and_have_the_losses_of_eight_cpu_processes(run: Run) -> None:
    timed = ("--mode", "performance", "--npus", "8", "--steps", "3", "--warmup-steps", "1", "--batch-size", "4")
    alike = (*timed, "--precision", "fp32", "--memory-format", "nchw")
    cpu, npu = (run(f"eight-{kind}", *alike, "--device", kind) for kind in ("cpu", "npu"))
    for done in (cpu, npu):
        assert done.code == 0, done.stdout
    assert {int(rank) for rank in range(8) if npu.events("start", rank)} == set(range(8))
    assert float(npu.events("result")[0]["fps"]) > 0
    losses = [[step["loss"] for step in done.metrics("step")] for done in (cpu, npu)]
    assert len(losses[0]) == 4, "each loss after the first depends on weights that all eight have changed"
    assert losses[0] == losses[1]
