"""The settings' layers: precedence, origins, and one clear line for every mistake."""

import inspect
import subprocess
import sys
from collections.abc import Sequence
from contextvars import copy_context
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from cyclopts import App, CycloptsError

from trainer.shared.config import (
    MODE_PRESETS,
    ConfigError,
    Layer,
    TrainConfig,
    resolve_train_config,
    user_layers,
)
from trainer.shared.config.layers import profile_layer, resolve
from trainer.shared.config.options import given_options, option_parameters, take_options
from trainer.shared.errors import UsageError
from trainer.shared.program import COMMAND_LINE


def test_a_flag_wins_over_the_environment_over_the_profile_over_the_mode(tmp_path: Path) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text("batch_size: 1\nlr: 0.1\nseed: 1\nepochs: 1\n")
    environ = {"PNAS_BATCH_SIZE": "2", "PNAS_LR": "0.2", "HOME": "/"}
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


# A wait that the system's clocks cannot count, and a distribution that is never drawn from to an end.
_BOUNDED = [
    ("stall_timeout_s", "--stall-timeout-s"),
    ("grace_s", "--grace-s"),
    ("rank_table_timeout_s", "--rank-table-timeout-s"),
    ("mixup", "--mixup"),
    ("cutmix", "--cutmix"),
]


@pytest.mark.parametrize(
    ("flags", "profile", "environ", "said"),
    [
        ({"batch_size": 0}, None, {}, "--batch-size 0: input should be greater than or equal to 1"),
        ({"batch_size": "1.5"}, None, {}, "--batch-size 1.5: is not a whole number"),
        *(({name: "9" * 400}, None, {}, f"--{name}: is too large") for name in ("epochs", "keep", "workers")),
        ({}, None, {"PNAS_STEPS": str(2**63)}, "--steps (from environment): is too large"),
        *(({name: "1e18"}, None, {}, f"{flag} 1e18: input should be less than or equal to") for name, flag in _BOUNDED),
        ({"restarts": "-1"}, None, {}, "--restarts -1: input should be greater than or equal to 0"),
        ({"restarts": "3 per hour"}, None, {}, "--restarts 3 per hour: is not a whole number"),
        ({"eval_crop": "0.01"}, None, {}, "--eval-crop 0.01: input should be greater than or equal to 0.25"),
        ({"data_path": ""}, None, {}, "--data-path: is empty; give a value, or leave it out"),
        ({"data_path": "a\0b"}, None, {}, "--data-path: has a NUL character"),
        ({"loss_scale": "foo"}, None, {}, "--loss-scale foo: is not a number or 'dynamic'"),
        ({"loss_scale": "-1"}, None, {}, "--loss-scale -1: input should be greater than 0 or 'dynamic'"),
        ({}, None, {"PNAS_BATCH_SIZE": ""}, "PNAS_BATCH_SIZE: is empty; give it a value, or unset it"),
        ({}, None, {"PNAS_NESTEROV": "maybe"}, "--nesterov maybe (from environment): must be true or false"),
        (
            {},
            None,
            {"PNAS_BATCHSIZE": "4"},
            "PNAS_BATCHSIZE: no setting has this variable; did you mean PNAS_BATCH_SIZE?",
        ),
        ({}, None, {"PNAS_XYZZY": "4"}, "PNAS_XYZZY: no setting has this variable; unset it"),
        ({}, None, {"PNAS_PORT": "29500"}, "PNAS_PORT: no setting has this variable"),
        ({}, None, {"PNAS_PROFILE": "sed"}, "--profile sed: no such file or shipped profile"),
        ({}, None, {"PNAS_PROFILE": ""}, "PNAS_PROFILE: is empty"),
        ({}, None, {"PNAS_LR": "fast"}, "--lr fast (from environment): is not a number"),
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
        ({"device": "npu", "memory_format": "nhwc"}, None, {}, "--memory-format nhwc is slow on an NPU"),
        ({"device": "cpu", "graph": "on"}, None, {}, "--graph on: a CPU has no graphs: leave --graph off"),
        ({"mode": "eval", "weights": "w", "graph": "on"}, None, {}, "--graph on: --mode eval takes no training step"),
        ({"device": "npu", "compile": True}, None, {}, "--compile: no compiler for an NPU has been tried"),
        ({"graph": "on", "compile": True}, None, {}, "--compile: a compiled step has not been captured yet"),
        ({"activation_checkpointing": True, "compile": True}, None, {}, "--compile: the compiler itself chooses"),
        ({"mode": "eval", "weights": "w", "compile": True}, None, {}, "--compile: --mode eval takes no training step"),
        ({"device": "cpu", "precision": "O2"}, None, {}, "--precision O2 needs an NPU"),
        ({"checks": "open"}, None, {}, "--checks open: only --mode prove has checks: leave --checks out"),
        ({"tune": True}, None, {}, "--tune: only --mode prove looks for settings: leave --tune out"),
        ({"mode": "prove", "tune": True, "nodes": 2}, None, {}, "--tune: one node looks for its settings, not 2"),
        ({"mode": "prove", "resume": "out/r1"}, None, {}, "--resume out/r1: --mode prove checks devices"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_setting(
    flags: dict[str, Any], profile: str | None, environ: dict[str, str], said: str
) -> None:
    with pytest.raises(UsageError) as raised:
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
        ("batch_size: 3\nlr: 1\nbatch_size: 4\n", "line 3: `batch_size` is given twice, first in line 1"),
        ("batch_size: 3\nbatch-size: 4\n", "`batch_size` is given twice, as `batch-size` too"),
        ("a: {b: 1, b: 2}\n", "line 1: `b` is given twice"),
        ("batch_size: true\n", "--batch-size true (from profile"),
        ("batch_size:\n", "is empty; give a value, or leave it out"),
        ("batch_size: {a: 1}\n", "--batch-size a (from profile"),
        ("batch_size: {a: 1}\n", "): is a mapping; give one value"),
        ("epochs: [3]\n", "): is a list; give one value"),
        ("data-path: [a, b]\n", "): is a list; give one value"),
        ("lr: .inf\n", "is not a number"),
        ("epochs: 1:30\n", "--epochs 1:30 (from profile"),
        ("[" * 5000, "line 1: more than 100 levels of nesting"),
        ("{a: " * 5000, "more than 100 levels of nesting"),
        ("a: !!timestamp 2024-99-99\n", "not valid YAML: month must be in 1..12"),
        ("\0", "not valid YAML"),
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


TEXTS = {
    "run_name": ["2024", "2024-11-01", "007", "1.10", "1_0", "0x1F", "1e5", "on", "y"],
    "output": ["2024", "2024-11-01", "~x", "a: b"],
    "master_addr": ["1.5", "10.0.0.1", "::1"],
    "weights": ["123", "0o17"],
    "checkpoint_every": ["500", "010"],
    "seed": ["010", "1_000"],
    "lr": ["1e-3", "1", "010"],
    "nesterov": ["on", "yes", "1"],
    "steps": ["null", "none", "~"],
}


@pytest.mark.parametrize(("field", "text"), [(field, text) for field, texts in TEXTS.items() for text in texts])
def test_a_text_means_the_same_as_a_flag_in_the_environment_and_in_a_profile(
    tmp_path: Path, field: str, text: str
) -> None:
    """YAML 1.1 would make a date, another number or a truth value of most of these texts."""
    profile = tmp_path / "mine.yaml"
    profile.write_text(f"{field}: {text!r}\n" if ": " in text else f"{field}: {text}\n")
    layers = [
        user_layers({field: text}, None, {}),
        user_layers({}, None, {f"PNAS_{field.upper()}": text}),
        user_layers({}, str(profile), {}),
        user_layers({}, None, {"PNAS_PROFILE": str(profile)}),
    ]
    values = [getattr(resolve_train_config(layer, partial=True)[0], field) for layer in layers]
    assert values == [values[0]] * len(layers)
    if field in {"run_name", "output", "master_addr", "weights", "checkpoint_every"}:
        assert str(values[0]) == text


def test_a_profile_of_anchors_and_aliases_is_read(tmp_path: Path) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text("<<: &same {lr: 1e-3, seed: 1}\nseed: 2\n")
    config, _ = resolve_train_config(user_layers({}, str(profile), {}))
    assert (config.lr, config.seed) == (1e-3, 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PNAS_PORT", "tcp://10.0.0.7:80"),
        ("PNAS_SERVICE_HOST", "10.0.0.7"),
        ("PNAS_SERVICE_PORT_HTTP", "80"),
        ("PNAS_PORT_80_TCP_ADDR", "10.0.0.7"),
        ("PNAS_TENSORBOARD_PORT_6006_TCP", "tcp://10.0.0.7:6006"),
        ("PNAS_MASTER_PORT", "tcp://10.0.0.7:80"),
        ("PNAS_REVISION", "abc"),
        ("PNAS_NAMESPACE", "a setting of the launcher"),
    ],
)
def test_a_variable_of_kubernetes_or_of_this_software_is_no_mistake(name: str, value: str) -> None:
    """Each pod gets the links of a Service named pnas; a link of pnas-master has the name of a setting."""
    config, _ = resolve_train_config(user_layers({}, None, {name: value}))
    assert config.master_port is None


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


def _understood(words: Sequence[str]) -> tuple[int, object]:
    """Return the number of options that cyclopts has looked at, and what it understood or criticised."""

    def command(*, dry_run: bool = False, **options: Any) -> object:
        return dry_run, given_options(options)

    app = App(result_action="return_value", version_flags=())
    app.default(take_options(command, after=option_parameters(TrainConfig)))
    count = len(app.assemble_argument_collection())
    try:
        return count, app(words, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        return count, str(error)


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("", 0),
        ("--seed 3 --lr=-0.5 --compile", 3),
        ("--seed 3 --steps", 2),
        ("--mode fast", 1),
        ("--compile --seed=", 2),
        ("--no-compile --seed 3", None),
        ("--no-ema", None),
        ("word --seed 3", 1),
        ("--resume -1", None),
        ("--dry-run --seed 3", None),
        ("--sed 3", None),
        ("--seed 3 -x", None),
    ],
)
def test_options_that_are_not_typed_change_nothing(words: str, options: int | None) -> None:
    """None: the command keeps all of its options, because a word may ask for their names."""
    whole_count, whole = _understood(words.split())
    context = copy_context()
    context.run(COMMAND_LINE.set, words.split())
    count, understood = context.run(_understood, words.split())
    assert understood == whole
    assert count == (whole_count if options is None else 1 + options)


def test_configuration_imports_neither_torch_nor_kubernetes() -> None:
    program = (
        "import sys, trainer.shared.config, trainer.shared.config.options; "
        "print([name for name in ('torch', 'kubernetes') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_folder_with_the_name_of_a_shipped_profile_does_not_hide_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert profile_layer("digits").values["model"] == "pnasnet5mobile"
