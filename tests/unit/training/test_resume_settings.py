"""A resumed run names the settings that differ from its checkpoint's."""

from trainer.shared.config import TrainConfig
from trainer.training.resume import changed_settings


def test_a_changed_setting_of_the_run_is_named_and_one_of_the_attempt_is_not() -> None:
    saved = TrainConfig(lr=0.1, workers=2).model_dump(mode="json")
    assert changed_settings(saved, TrainConfig(lr=0.2, workers=7)) == ["lr 0.1 -> 0.2"]


def test_an_option_that_the_checkpoint_did_not_know_yet_was_at_its_default() -> None:
    saved = {name: value for name, value in TrainConfig().model_dump(mode="json").items() if name != "momentum"}
    assert changed_settings(saved, TrainConfig()) == []
    assert changed_settings(saved, TrainConfig(momentum=0.5)) == ["momentum 0.9 -> 0.5"]
