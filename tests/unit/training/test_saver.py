"""Checkpoints during the training: when one is due, the cost of a full disk, and the ones that stay."""

import time
from collections.abc import Callable, Collection
from pathlib import Path

import pytest
import torch

from trainer.checkpoint.reading import list_checkpoints, newest_valid, verify_checkpoint
from trainer.checkpoint.saver import Saver
from trainer.shared.durations import Interval
from trainer.shared.errors import TrainerError

CONTENT = {"state": {"ema_updates": None}}


def _saver(folder: Path, *, every: str = "10", keep: int = 3, clock: Callable[[], float] = time.monotonic) -> Saver:
    return Saver(
        folder,
        every=Interval.parse(every),
        keep=keep,
        pin_memory=False,
        evaluated="model.",
        description={},
        clock=clock,
    )


def _save(
    saver: Saver,
    step: int,
    *,
    weights: Collection[str] = (),
    sync: Callable[[], None] = lambda: None,
) -> str | None:
    saver.save(step, {"model.w": torch.full((5,), float(step))}, CONTENT, weights=weights, sync=sync)
    return saver.wait()


def _steps(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in list_checkpoints(folder)]


def test_a_checkpoint_is_due_once_per_interval_of_steps(tmp_path: Path) -> None:
    saver = _saver(tmp_path)
    assert [step for step in range(35) if saver.is_due(step)] == [10, 20, 30]
    saver.start_at(34)
    assert [step for step in range(34, 52) if saver.is_due(step)] == [40, 50]


def test_a_checkpoint_is_due_after_an_interval_of_time(tmp_path: Path) -> None:
    now = 0.0
    saver = _saver(tmp_path, every="1h", clock=lambda: now)
    now = 3599
    assert not saver.is_due(1000)
    now = 3600
    assert saver.is_due(1001)
    now = 7199
    assert not saver.is_due(1002)


def test_the_saved_state_belongs_to_its_step_although_training_continues(tmp_path: Path) -> None:
    saver, weight = _saver(tmp_path), torch.ones(5)

    def train_on() -> None:
        weight.fill_(7)

    saver.save(10, {"model.w": weight}, CONTENT, sync=train_on)
    assert saver.wait() is None
    assert verify_checkpoint(tmp_path / "step-000000010").path.is_dir()
    data = (tmp_path / "step-000000010/state.safetensors").read_bytes()
    assert data.endswith(torch.ones(5).numpy().tobytes())


def test_the_newest_checkpoints_and_the_one_just_written_stay_even_with_damaged_newer_ones(tmp_path: Path) -> None:
    saver = _saver(tmp_path, keep=2)
    for step in (10, 20, 30, 40):
        assert _save(saver, step) is None
    assert _steps(tmp_path) == [40, 30]
    for step in (30, 40):
        (tmp_path / f"step-{step:09d}/state.safetensors").write_bytes(b"torn")
    # A run that rolled back past both writes its next one here.
    assert _save(saver, 25) is None
    newest = newest_valid(tmp_path, on_refused=lambda _path, _why: None)
    assert newest is not None
    assert newest.path.name == "step-000000025"


def test_records_that_cannot_be_synced_cost_the_checkpoint_that_counts_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saver = _saver(tmp_path)

    def full() -> None:
        raise TrainerError("metrics.jsonl: No space left on device")

    assert _save(saver, 10) is None
    assert _save(saver, 20, sync=full) == "metrics.jsonl: No space left on device"
    assert "warning" in capsys.readouterr().out
    assert _steps(tmp_path) == [10]
    assert _save(saver, 30) is None, "the next one is saved again"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_unexpected_error_is_not_a_success(tmp_path: Path) -> None:
    def broken() -> None:
        raise RuntimeError("unexpected")

    assert "died" in (_save(_saver(tmp_path), 10, sync=broken) or "")


def test_a_failed_write_costs_a_warning_and_leaves_the_earlier_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saver = _saver(tmp_path)
    assert _save(saver, 10) is None
    (tmp_path / ".writing-1").write_text("")  # a file in the way is deleted
    assert _save(saver, 20) is None
    (tmp_path / "best.safetensors").mkdir()
    error = _save(saver, 30, weights=("best",))
    assert error is not None
    assert "best.safetensors" in error
    assert "checkpoint of step 30" in capsys.readouterr().out
    assert _steps(tmp_path) == [20, 10], "a checkpoint never counts weights that do not exist"
