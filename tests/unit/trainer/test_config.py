"""The settings' layers: precedence, origins, and one clear line for every mistake."""

import inspect
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from cyclopts import App

from trainer.shared.config import (
    MODE_PRESETS,
    ConfigError,
    Layer,
    TrainConfig,
    resolve_train_config,
    user_layers,
)
from trainer.shared.config.layers import resolve
from trainer.shared.config.options import given_options, option_parameters


def test_a_flag_wins_over_the_environment_over_the_profile_over_the_mode(tmp_path: Path) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text("batch_size: 1\nlr: 0.1\nseed: 1\nepochs: 1\n")
    environ = {"PNAS_BATCH_SIZE": "2", "PNAS_LR": "0.2", "PNAS_UNRELATED": "x"}
    config, origins = resolve_train_config(user_layers({"batch_size": 3}, str(profile), environ))
    assert (config.batch_size, config.lr, config.seed, config.epochs) == (3, 0.2, 1, 1)
    assert origins["batch_size"] == "flag"
    assert origins["lr"] == "environment"
    assert origins["seed"] == f"profile {profile}"
    assert origins["momentum"] == "default"


def test_each_mode_has_its_preset_and_the_preset_yields_to_a_flag() -> None:
    for mode, preset in MODE_PRESETS.items():
        flags: dict[str, Any] = {"mode": mode, "weights": "w.safetensors"}
        config, origins = resolve_train_config(user_layers(flags, None, {}))
        for field, value in preset.items():
            assert getattr(config, field) == value
            assert origins[field] == f"mode {mode}"
    config, _ = resolve_train_config(user_layers({"mode": "performance", "steps": 5}, None, {}))
    assert config.steps == 5


def test_the_mode_of_a_profile_chooses_the_preset(tmp_path: Path) -> None:
    profile = tmp_path / "timed.yaml"
    profile.write_text("mode: performance\n")
    config, _ = resolve_train_config(user_layers({}, str(profile), {}))
    assert (config.mode, config.steps) == ("performance", 1000)


def test_the_seed_profile_is_the_default() -> None:
    default, _ = resolve_train_config(user_layers({}, None, {}))
    seed, _ = resolve_train_config(user_layers({}, "seed", {}))
    assert seed == default


@pytest.mark.parametrize("profile", ["seed", "recommended", "digits"])
def test_every_shipped_profile_is_valid(profile: str) -> None:
    resolve_train_config(user_layers({}, profile, {}))
    text = (resources.files("trainer.shared.config") / "profiles" / f"{profile}.yaml").read_text()
    assert yaml.safe_load(text)


@pytest.mark.parametrize(
    ("flags", "profile", "environ", "said"),
    [
        ({"batch_size": 0}, None, {}, "--batch-size 0: input should be greater than or equal to 1"),
        ({}, None, {"PNAS_LR": "fast"}, "--lr fast (from environment): input should be a valid number"),
        ({}, "nosuch", {}, "--profile nosuch: no such file or shipped profile; shipped are"),
        ({}, "sed", {}, "did you mean seed?"),
        ({}, "nosuch.yaml", {}, "--profile nosuch.yaml: cannot be read: No such file or directory"),
        ({"mode": "eval"}, None, {}, "--mode eval needs --weights"),
        ({"mode": "finetune"}, None, {}, "--mode finetune needs --weights"),
        ({"nodes": 2, "node_rank": 2}, None, {}, "--node-rank 2 is not below --nodes 2"),
        ({"nesterov": True, "momentum": 0.0}, None, {}, "--nesterov needs --momentum above 0"),
        ({"warmup_epochs": 90}, None, {}, "leaves no epoch"),
        ({"epochs": 0}, None, {}, "--mode full needs --epochs of at least 1"),
        ({"run_name": "../up"}, None, {}, "--run-name ../up"),
        ({"device": "npu", "channels_last": True}, None, {}, "--channels-last is slow on an NPU"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_setting(
    flags: dict[str, Any], profile: str | None, environ: dict[str, str], said: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        resolve_train_config(user_layers(flags, profile, environ))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("batch_sise: 2\n", "unknown setting `batch_sise` in profile"),
        ("batch_sise: 2\n", "did you mean batch_size?"),
        ("- a list\n", "must be a mapping"),
        ("a: [\n", "not valid YAML"),
        ("image_size: big\n", "--image-size big (from profile"),
    ],
)
def test_a_mistake_in_a_profile_names_the_profile(tmp_path: Path, text: str, said: str) -> None:
    profile = tmp_path / "bad.yaml"
    profile.write_text(text)
    with pytest.raises(ConfigError) as raised:
        resolve_train_config(user_layers({}, str(profile), {}))
    assert said in str(raised.value)
    assert str(profile) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_none_unsets_a_value_from_a_lower_layer() -> None:
    config, _ = resolve(TrainConfig, [Layer("flag", {"steps": "none"}), Layer("profile", {"steps": 5})])
    assert config.steps is None


def test_a_runs_name_can_be_a_number() -> None:
    config, _ = resolve_train_config(user_layers({}, None, {"PNAS_RUN_NAME": "2024"}))
    assert config.run_name == "2024"


def test_an_environment_variable_that_is_not_yaml_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^PNAS_RUN_NAME=\[: not valid YAML"):
        resolve_train_config(user_layers({}, None, {"PNAS_RUN_NAME": "["}))


def test_a_flag_unsets_a_number_that_a_profile_sets(tmp_path: Path) -> None:
    parameters = {parameter.name: parameter for parameter in option_parameters(TrainConfig)}
    (tmp_path / "short.yaml").write_text("steps: 5")
    given: dict[str, Any] = {}

    def command(**options: Any) -> None:
        given.update(given_options(options))

    command.__signature__ = inspect.Signature([parameters["steps"]])  # type: ignore[attr-defined]  # as the trainer does
    app = App()
    app.default(command)
    app(["--steps", "none"], result_action="return_value")
    config, origins = resolve_train_config(user_layers(given, str(tmp_path / "short.yaml"), {}))
    assert config.steps is None
    assert origins["steps"] == "flag"


def test_configuration_imports_neither_torch_nor_kubernetes() -> None:
    program = (
        "import sys, trainer.shared.config, trainer.shared.config.options; "
        "print([name for name in ('torch', 'kubernetes') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
