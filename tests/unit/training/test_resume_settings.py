"""A resumed run names the settings that differ from its checkpoint's."""

from trainer.shared.config import TrainConfig
from trainer.training.resume import changed_settings, changes_since


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
