"""A compiled run has an eager run's losses, with two ranks too, and continues bit for bit after a kill."""

from pathlib import Path

import pytest

from tests.local.conftest import TrainerResult, train
from tests.local.resumable_runs import BackgroundTrainer, assert_same_run, expected_bit_exact, recipe

AUX = ("--aux", "tf")
COMPILATION_S = 3000
"""Of a run with its compilation: a minute or two of one processor, of which a test on a busy machine gets little."""

pytestmark = pytest.mark.timeout(COMPILATION_S + 600)


def _losses(run: TrainerResult) -> list[float]:
    assert run.code == 0, run.stdout
    return [row["loss"] for row in run.metrics("step")]


def test_a_compiled_run_has_the_losses_of_an_eager_one_and_continues_bit_for_bit(
    tmp_path: Path, few_digits: Path
) -> None:
    eager = train(tmp_path, *recipe(*AUX), data=few_digits, name="eager")
    # The later starts find the kernels of the first one in torch's cache.
    whole = train(tmp_path, *recipe(*AUX, "--compile"), data=few_digits, name="whole", timeout_s=COMPILATION_S)
    # Compiled kernels round otherwise, as another layout in memory does, and each step multiplies the difference.
    assert _losses(whole)[:2] == pytest.approx(_losses(eager)[:2], rel=1e-4)
    killed = BackgroundTrainer(tmp_path, few_digits, *AUX, "--compile", name="killed")
    assert killed.wait_for(lambda output: "] checkpoint step=" in output), killed.output
    killed.kill(trainer=True, workers=killed.workers())
    killed.wait()
    resumed = train(tmp_path, *recipe("--resume", "auto", *AUX), data=few_digits, name="killed")
    assert resumed.code == 0, resumed.stdout
    assert resumed.events("start")[0]["compile"] == "on", "the run keeps its settings"
    assert f"resumed bit_exact={expected_bit_exact()}" in resumed.stdout
    assert_same_run(whole.run, resumed.run, last_step=16)


def test_two_compiled_ranks_have_the_losses_of_eager_ones(tmp_path: Path, few_digits: Path) -> None:
    options = recipe(*AUX, "--npus", "2", "--epochs", "1", "--steps", "2", "--log-interval", "1")
    eager = train(tmp_path, *options, data=few_digits, name="eager")
    compiled = train(tmp_path, *options, "--compile", data=few_digits, name="compiled", timeout_s=COMPILATION_S)
    assert [line["compile"] for rank in (0, 1) for line in compiled.events("start", rank)] == ["on", "on"]
    assert _losses(compiled) == pytest.approx(_losses(eager), rel=1e-4)
