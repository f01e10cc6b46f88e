"""A resumed run names the settings that differ from its checkpoint's, and a state that cannot be read any more."""

from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from trainer.checkpoint.manifest import STATE_FILE, Blob
from trainer.checkpoint.writing import write_checkpoint
from trainer.devices.cpu import CpuDevice
from trainer.shared.config import TrainConfig
from trainer.shared.errors import TrainerError
from trainer.training.checkpoints import numerics_fingerprint
from trainer.training.progress import TrainingProgress
from trainer.training.resume import changed_settings, changes_since, resume


def test_a_changed_setting_of_the_run_is_named_and_one_of_the_attempt_is_not() -> None:
    saved = TrainConfig(lr=0.1, workers=2).model_dump(mode="json")
    assert changed_settings(saved, TrainConfig(lr=0.2, workers=7)) == ["lr 0.1 -> 0.2"]


def test_an_option_that_the_checkpoint_did_not_know_yet_was_at_its_default() -> None:
    saved = {name: value for name, value in TrainConfig().model_dump(mode="json").items() if name != "momentum"}
    assert changed_settings(saved, TrainConfig()) == []
    assert changed_settings(saved, TrainConfig(momentum=0.5)) == ["momentum 0.9 -> 0.5"]


def test_a_setting_that_decides_the_bits_is_named_once() -> None:
    saved = TrainConfig(batch_size=8).model_dump(mode="json")
    before, now = {"micro_batch": 8, "batch_size": 8}, {"micro_batch": 4, "batch_size": 4}
    changes = changes_since(before, now, saved, TrainConfig(batch_size=4))
    assert changes == ["micro_batch 8 -> 4", "batch_size 8 -> 4"]


def test_a_decoder_of_another_version_and_captured_steps_are_named() -> None:
    config = TrainConfig()
    training = SimpleNamespace(
        runtime=CpuDevice(),
        precision=SimpleNamespace(name="fp32"),
        config=config,
        micro_batch=4,
        world_size=4,
        captured=None,
    )
    before = {**numerics_fingerprint(cast("Any", training)), "pillow": "1.0"}
    training.captured = "graphs"
    now = numerics_fingerprint(cast("Any", training))
    changes = changes_since(before, now, config.model_dump(mode="json"), config)
    assert changes == [f"pillow 1.0 -> {version('pillow')}", "graph None -> on"]


def test_a_verified_state_that_cannot_be_read_is_a_failure_and_no_wrong_setting(tmp_path: Path) -> None:
    content = {"progress": TrainingProgress(lr_factor=1.0).to_json()}
    path = write_checkpoint(tmp_path, 20, {"w": Blob("U8", (3,), memoryview(b"abc"))}, content).path
    (path / STATE_FILE).unlink()
    with pytest.raises(TrainerError, match=f"{path / STATE_FILE}: cannot be read: .*; start the run again") as error:
        resume(cast("Any", None), path, {})
    assert error.value.exit_code == 1
