"""O2 by apex: its required order of calls, and the same losses as O2 without it. apex is a stand-in here."""

import signal
from pathlib import Path
from unittest.mock import ANY

import pytest

from tests.local.conftest import TrainerResult, train
from tests.local.resumable_runs import BackgroundTrainer, assert_same_run, recipe
from tests.npu.conftest import O2, Run
from tests.npu.machine import environment
from trainer.checkpoint.reading import list_checkpoints, read_manifest

RECIPE = O2[:-2]
"""Without a precision: apex is found, and chosen."""


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("calls") / "log"


@pytest.fixture(scope="module")
def by_apex(run: Run, log: Path) -> TrainerResult:
    done = run("apex", *RECIPE, environ={**environment(apex=True), "NPU_EMULATED_LOG": str(log)})
    assert done.code == 0, done.stdout
    assert done.events("start")[0]["precision"] == "O2"
    return done


def test_apex_gets_the_model_unwrapped_and_after_the_process_group_exists(by_apex: TrainerResult, log: Path) -> None:
    calls = [line.split(" ", 1)[1] for line in log.read_text().splitlines() if "amp.initialize" in line]
    call = "amp.initialize(opt_level=O2, loss_scale=dynamic, combine_grad=True, process_group=True, wrapped=False)"
    assert calls == [call, call]


def test_both_ways_to_o2_give_the_same_losses(by_apex: TrainerResult, in_o2: TrainerResult) -> None:
    assert in_o2.events("start")[0]["precision"] == "O2-native"
    assert by_apex.metrics("step") == in_o2.metrics("step")
    assert by_apex.metrics("eval") == in_o2.metrics("eval")
    assert "skipped" in by_apex.stdout


def test_an_evaluation_without_an_average_changes_nothing_and_is_the_same_both_ways(run: Run) -> None:
    without = (*RECIPE, "--ema", "0")
    apex, native = (
        run("apex-without", *without, environ=environment(apex=True)),
        run("native-without", *without, "--precision", "O2"),
    )
    assert (apex.code, native.code) == (0, 0), apex.stdout + native.stdout
    assert apex.metrics("step") == native.metrics("step")
    assert [row["images"] for row in apex.metrics("eval")] == [row["images"] for row in native.metrics("eval")]
    for one, other in zip(apex.metrics("eval"), native.metrics("eval"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-2), "folded norms round otherwise in half precision"


def test_apexs_masters_and_loss_scale_are_in_the_checkpoint(
    by_apex: TrainerResult, few_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(apex=True).items():
        monkeypatch.setenv(name, value)
    stopped = BackgroundTrainer(tmp_path, few_digits, *RECIPE, name="stopped")
    assert stopped.wait_for(lambda output: "] step epoch=0" in output), stopped.output
    stopped.signal(signal.SIGTERM)
    assert stopped.wait() == 75, stopped.output
    resumed = train(tmp_path, *recipe(*RECIPE, "--resume", "auto"), data=few_digits, name="stopped")
    assert resumed.code == 0, resumed.stdout
    assert_same_run(by_apex.run, resumed.run, last_step=12)


def test_a_static_scale_reaches_apex(run: Run, log: Path, by_apex: TrainerResult) -> None:
    environ = {**environment(apex=True), "NPU_EMULATED_LOG": f"{log}-static"}
    static = ("--epochs", "1", "--steps", "2", "--loss-scale", "128")
    done = run("static", *static, "--clip-norm", "5", environ=environ)
    assert done.code == 0, done.stdout
    assert "loss_scale=128.0, combine_grad=True, process_group=False" in Path(f"{log}-static").read_text()
    assert "Gradient overflow" not in done.stdout


def _scale(done: TrainerResult) -> object:
    """Return the loss scale in the newest checkpoint."""
    assert done.code == 0, done.stdout
    return read_manifest(list_checkpoints(done.run / "checkpoints")[0]).content["state"]["precision"]


def _differs(done: TrainerResult) -> str:
    (line,) = [line for line in done.stdout.splitlines() if " resumed " in line]
    return line


def test_a_static_scale_stays_the_runs_own_after_a_resume(run: Run, by_apex: TrainerResult) -> None:
    options = ("--npus", "2", "--epochs", "2", "--steps", "2", "--resume", str(by_apex.run))
    static = run("static-later", *options, "--loss-scale", "128", environ=environment(apex=True))
    assert _scale(static) == {"loss_scaler0": {"loss_scale": 128.0, "unskipped": ANY}}
    assert "loss_scale dynamic -> 128.0" in _differs(static)


@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False)], ids=["to apex", "from apex"])
def test_the_loss_scale_restarts_after_a_change_to_or_from_apex(run: Run, before: bool, after: bool) -> None:
    options, name = ("--steps", "2", "--loss-scale", "128"), f"changes-{before}"
    first = run(name, *options, "--epochs", "1", environ=environment(apex=before))
    assert ("loss_scaler0" in str(_scale(first))) is before
    resumed = run(name, *options, "--epochs", "2", "--resume", "auto", environ=environment(apex=after))
    assert ("loss_scaler0" in str(_scale(resumed))) is after
    assert "loss scale restarts" in _differs(resumed)
