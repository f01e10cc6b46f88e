"""An administrator's defaults for a namespace rank between profile and mode preset, and are checked."""

import pytest

from launcher.cluster.defaults import parse_defaults
from launcher.settings.layers import resolve_settings
from trainer.shared.config import ConfigError

TEXT = """
image: registry.example/pnas:0.1.0
data-claim: images
node_selector: {accelerator: huawei-Ascend910}
epochs: 30
modes:
  performance: {steps: 200}
"""
ORIGIN = "cluster defaults (configmap pnas-defaults in training)"


def test_defaults_rank_below_the_users_own_settings_and_above_presets() -> None:
    layer = parse_defaults(TEXT, "training")
    settings = resolve_settings({"data_claim": "mine"}, None, {"PNAS_IMAGE": "other:1"}, defaults=layer)
    values = {name: (value, origin) for name, value, origin in settings.items()}
    assert values["data_claim"] == ("mine", "flag")
    assert values["image"] == ("other:1", "environment")
    assert values["node_selector"] == (("accelerator=huawei-Ascend910",), ORIGIN)
    assert values["epochs"] == (30, ORIGIN)
    assert values["output_claim"] == ("pnas-output", "default")
    assert settings.given == ("epochs",), "the trainer gets the default as an option"


def test_a_mode_can_have_its_own_defaults() -> None:
    layer = parse_defaults(TEXT, "training")
    assert resolve_settings({"mode": "performance"}, None, {}, defaults=layer).train.steps == 200
    assert resolve_settings({"mode": "full"}, None, {}, defaults=layer).train.steps is None


def test_an_empty_text_gives_no_defaults() -> None:
    assert parse_defaults("", "training")("full").values == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not valid YAML"),
        ("- image", "must be a mapping like `batch_size: 32`, not a list"),
        ("imgae: x", "unknown setting `imgae`"),
        ("name: mine", "each job has its own `name`"),
        ("namespace: there", "each job has its own `namespace`"),
        ("modes: {quick: {steps: 1}}", "no such mode: quick"),
        ("modes: {full: {stepz: 1}}", "unknown setting `stepz`"),
        ("modes: [full]", "modes: must be a mapping"),
    ],
)
def test_a_mistake_is_reported_with_the_configmap_that_contains_it(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_defaults(text, "training")
    assert message in str(error.value)
    assert ORIGIN in str(error.value)
    assert "\n" not in str(error.value)


def test_a_value_that_breaks_a_rule_is_traced_to_the_defaults() -> None:
    layer = parse_defaults("shm: much", "training")
    with pytest.raises(ConfigError, match="--shm much \\(from cluster defaults"):
        resolve_settings({}, None, {}, defaults=layer)
