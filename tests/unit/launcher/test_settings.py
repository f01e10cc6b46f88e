"""Settings come from layers and have an origin; a spec is complete, and the trainer reads it back unchanged."""

import inspect
import os
import re
import socket
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from cyclopts import App, Token

from launcher.commands.parameters import ANYWHERE, parse_duration, refuse_empty_values
from launcher.commands.prepare import where_to_find
from launcher.errors import ExitCode, RequestError
from launcher.exits import run_command
from launcher.kinds import kind_named
from launcher.local import records
from launcher.local.jobs import LocalJobs
from launcher.local.submitter import LocalSubmitter
from launcher.manifests.pod_spec import make_pod_spec
from launcher.output.config_report import settings_document, settings_text
from launcher.settings.layers import Settings, resolve_settings
from launcher.settings.options import JobOptions, is_job_name
from launcher.settings.spec import JobSpec, free_name, trainer_options
from trainer.shared.config import ConfigError, TrainConfig, resolve_train_config, user_layers
from trainer.shared.config.options import given_options, option_parameters
from trainer.shared.durations import count, format_duration
from trainer.shared.errors import UsageError

NOON = datetime(2026, 11, 24, 12, 0, 5)


def as_the_trainer_reads(words: list[str], environ: dict[str, str] | None = None) -> TrainConfig:
    """Parse options with the parameters that the trainer's own command line has."""
    seen: dict[str, Any] = {}

    def train(**options: Any) -> None:
        seen.update(given_options(options))

    train.__dict__["__signature__"] = inspect.Signature(option_parameters(TrainConfig))
    app = App(result_action="return_value")
    app.default(train)
    app(words, exit_on_error=False, print_error=False)
    return resolve_train_config(user_layers(seen, None, environ or {}))[0]


def local_spec(settings: Settings, folder: Path) -> JobSpec:
    return LocalSubmitter(LocalJobs(folder / "jobs")).build(settings, now=NOON)


def test_each_value_comes_from_the_highest_layer_and_names_it(tmp_path: Path) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text("lr: 0.1\nepochs: 7\nbackend: local\nseed: 5\n")
    settings = resolve_settings(
        {"seed": 9, "mode": "performance"}, str(profile), {"PNAS_LR": "0.2", "PNAS_NAME": "mine", "HOME": "/"}
    )
    values = {name: (value, origin) for name, value, origin in settings.items()}
    assert values["seed"] == (9, "flag")
    assert values["lr"] == (0.2, "environment")
    assert values["name"] == ("mine", "environment")
    assert values["epochs"] == (7, f"profile {profile}")
    assert values["backend"] == ("local", f"profile {profile}")
    assert values["steps"] == (1000, "mode performance")
    assert values["momentum"] == (0.9, "default")
    assert "run_name" not in values, "the run is named after the job"


def test_config_show_has_every_setting_as_text_and_as_json() -> None:
    settings = resolve_settings({"npus": 2}, None, {})
    lines = {line.split()[0]: line.split()[1:] for line in settings_text(settings).splitlines()}
    assert lines["npus"] == ["2", "flag"]
    assert lines["nesterov"] == ["false", "default"]
    document = settings_document(settings)
    assert document["apiVersion"] == "pnas/v1"
    assert document["settings"]["data_path"] == {"value": "/data", "origin": "default", "set": False}
    assert set(document["settings"]) == (set(TrainConfig.model_fields) | set(JobOptions.model_fields)) - {"run_name"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"name": "My_Job"}, "--name My_Job: use a letter, then letters"),
        ({"name": "x" * 41}, "40 at most"),
        ({"name": 2024}, "--name 2024: use a letter, then letters"),
        ({"mode": "eval"}, "--mode eval needs --weights"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"user": "9" * 400}, "--user: is too large"),
        *(({name: "\udcff1"}, f"--{name}: is not UTF-8 text") for name in ("ttl", "deadline")),
        *(
            ({name: ("a=b", "\udcff")}, f"--{name.replace('_', '-')}: is not UTF-8 text")
            for name in ("env", "node_selector")
        ),
        ({"device": "cpu", "precision": "O2"}, "--precision O2 needs an NPU: on a CPU use --precision fp32"),
        ({"resume": "/output/a", "mode": "eval"}, "--resume /output/a: continues training; to evaluate give --weights"),
        ({"resume": "/output/a", "mode": "performance"}, "--mode performance times steps from the start"),
    ],
)
def test_an_invalid_setting_is_refused_in_one_line(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolve_settings(flags, None, {})
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_a_profile_with_an_unknown_setting_is_refused(tmp_path: Path) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text("batchsize: 3\n")
    with pytest.raises(ConfigError, match=r"unknown setting `batchsize` .* did you mean batch_size"):
        resolve_settings({}, str(profile), {})


def test_a_spec_has_a_free_name_and_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = resolve_settings({"data_path": Path("data"), "model": "pnasnet5mobile"}, None, {})
    name = "pnas-full-mobile-1124-120005"
    (tmp_path / "output" / f"{name}-2").mkdir(parents=True)
    (tmp_path / "jobs" / name).mkdir(parents=True)
    spec = LocalSubmitter(LocalJobs(tmp_path / "jobs")).build(settings, now=NOON)
    assert spec.name == f"{name}-3", "neither a known job nor an earlier run's folder is reused"
    assert spec.train.data_path == tmp_path / "data"
    assert spec.output == tmp_path / "output" / spec.name


def test_again_gives_the_next_free_name_to_a_job_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs" / "mine").mkdir(parents=True)
    submitter = LocalSubmitter(LocalJobs(tmp_path / "jobs"))
    settings = resolve_settings({"name": "mine"}, None, {})
    assert submitter.build(settings, now=NOON).name == "mine", "submit says that this name is taken"
    assert submitter.build(settings, now=NOON, again=True).name == "mine-2"
    resumed = resolve_settings({"name": "mine", "resume": "auto"}, None, {})
    assert submitter.build(resumed, now=NOON, again=True).name == "mine"


def test_a_name_of_the_greatest_length_has_room_for_its_number() -> None:
    longest = "n" * 37 + "-aa"
    assert is_job_name(longest)
    assert free_name(longest, {longest}.__contains__) == "n" * 37 + "-2"
    taken = {longest, *(f"{'n' * 37}-{count}" for count in range(2, 12))}
    assert is_job_name(free_name(longest, taken.__contains__))


@pytest.mark.parametrize(
    ("text", "values"),
    [("A=b: c", ("A=b: c",)), ("[A=1, B=010]", ("A=1", "B=010")), ("{A: on}", ("A=on",)), ("A=[1]", ("A=[1]",))],
)
def test_a_variable_holds_one_text_or_several(text: str, values: tuple[str, ...]) -> None:
    assert resolve_settings({}, None, {"PNAS_ENV": text}).options.env == values


def test_a_variable_that_holds_half_a_list_is_refused_without_its_values() -> None:
    with pytest.raises(ConfigError, match=r"^PNAS_ENV: line 1: not valid YAML") as refused:
        resolve_settings({}, None, {"PNAS_ENV": "[A=hidden"})
    assert "hidden" not in str(refused.value)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"PNAS_NAMESPCE": "x"}, "PNAS_NAMESPCE: no setting has this variable; did you mean PNAS_NAMESPACE?"),
        ({"PNAS_NAMESPACE": ""}, "PNAS_NAMESPACE: is empty"),
        ({"PNAS_BACKEND": "kubernetes"}, "PNAS_BACKEND=kubernetes: no such backend"),
    ],
)
def test_a_command_that_reads_jobs_refuses_a_mistaken_variable(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name, value in {**variables, "PNAS_BATCH_SIZE": "4", "PNAS_PORT": "tcp://10.0.0.7:80"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises((RequestError, UsageError), match=re.escape(message)):
        assert ANYWHERE.backend_name != ANYWHERE.access.namespace


def test_the_variable_of_a_profile_counts_unless_an_option_names_another(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(f"queue: {name}\nrun_name: {name}\n")
    environ = {"PNAS_PROFILE": str(tmp_path / "one.yaml")}
    assert resolve_settings({}, None, environ).options.queue == "one"
    assert resolve_settings({}, str(tmp_path / "two.yaml"), environ).options.queue == "two"


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"mode": "performance"},
        {"mode": "performance", "epochs": 90, "steps": 7},
        {"mode": "eval", "weights": Path("w.safetensors")},
        {"nesterov": True, "decay_all": False, "loss_scale": 128.0, "npus": 8, "lr": 1e-7, "precision": "O2"},
        {"master_addr": "10.0.0.1", "nodes": 2, "node_rank": 1, "warmup_epochs": 5, "memory_format": "nchw"},
    ],
)
def test_the_trainer_reads_back_exactly_what_the_spec_says(flags: dict[str, Any], tmp_path: Path) -> None:
    settings = resolve_settings(flags, None, {})
    spec = local_spec(settings, tmp_path)
    assert as_the_trainer_reads(trainer_options(spec)) == spec.train


def test_an_unset_option_is_left_to_the_weights(tmp_path: Path) -> None:
    flags = {"mode": "eval", "weights": Path("w.safetensors"), "padding": "exact"}
    settings = resolve_settings(flags, None, {"PNAS_EVAL_CROP": "0.875"})
    spec = local_spec(settings, tmp_path)
    options = as_the_trainer_reads(trainer_options(spec)).model_fields_set
    assert {"padding", "eval_crop"} <= options, "a value that was set stays set, even if it is the default"
    assert not {"image_size", "normalize", "interpolation"} & options


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("1.5s", 1.5), ("10m", 600), ("1h30m", 5400), ("2d", 172800), ("3 min 2 s", 182)]
)
def test_durations_are_parsed_in_the_usual_spellings(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5", "5 weeks", "1h30", "m"])
def test_a_text_that_is_not_a_duration_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="is no duration"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["2147483648", "9" * 400, "99999d"])
def test_more_time_than_kubernetes_can_count_is_refused(text: str) -> None:
    assert parse_duration("2147483647") == 2**31 - 1
    with pytest.raises(RequestError, match="is longer than 68 years"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("words", "option"),
    [
        *((("delete", "a", option, ""), option) for option in ("--namespace", "--context", "--kubeconfig")),
        *((("logs", "a", option, ""), option) for option in ("--save", "--device", "--grep")),
        *((("submit", f"{option}="), option) for option in ("--profile", "--save", "--output", "--image")),
    ],
)
def test_an_option_with_an_empty_value_is_refused(
    words: tuple[str, ...], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unset variable of the shell would otherwise choose another place, or be left out in silence."""
    assert run_command(lambda: refuse_empty_values(words)) == ExitCode.USAGE
    assert capsys.readouterr().err == f"error: {option}: is empty; give a value, or leave it out\n"
    refuse_empty_values(("submit", "--env", "A=", "--env=B=", "--detach", "--name=x"))


@pytest.mark.parametrize("text", ["-1", "1.5", "x", "", "9" * 23, "9" * 5000])
def test_a_text_that_is_not_a_count_is_refused(text: str) -> None:
    assert count(int, [Token(value="9" * 18)]) == 10**18 - 1
    with pytest.raises(ValueError, match=r'^"\S*" is (not a whole number of 0 or more|too large)$'):
        count(int, [Token(value=text)])


@pytest.mark.parametrize("flags", [{"grace_s": "inf"}, {"lr": "inf"}, {"loss_scale": "nan"}])
def test_a_number_that_is_not_finite_is_refused(flags: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="should be a finite number"):
        resolve_settings(flags, None, {})


@pytest.mark.parametrize("place", [{}, {"namespace": "training"}])
def test_a_clusters_job_is_found_even_if_this_machine_has_a_job_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: dict[str, str]
) -> None:
    """A search by name finds this machine's job first, unless the user names a place on a cluster."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    settings = resolve_settings({"name": "mine", "image": "r/p:1", **place}, None, {})
    spec = make_pod_spec(settings, kind_named("volcano"))
    options = "".join(f" --{name} {value}" for name, value in place.items())
    assert where_to_find(settings, spec).words == options
    folder = records.state_home(os.environ) / "mine"
    folder.mkdir(parents=True)
    job = {"name": "mine", "created": 1.0, "host": socket.gethostname(), "cwd": "/", "command": ["x"], "spec": {}}
    records.write_record(folder / records.JOB, "LocalJob", {**job, "output": str(tmp_path)})
    records.write_record(folder / records.EXIT, "Exit", {"returncode": 0, "started": 1.0, "ended": 2.0})
    assert where_to_find(settings, spec).words == (options or " --backend volcano")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.84, "0.8 s"), (42.2, "42 s"), (182, "3 min 2 s"), (3600, "1 h"), (18720, "5 h 12 min"), (183600, "2 d 3 h")],
)
def test_durations_are_written_in_their_two_largest_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
    assert parse_duration(text) == pytest.approx(seconds, abs=0.5)


def test_a_name_cannot_end_in_a_line_break() -> None:
    assert is_job_name("ladder-a")
    assert not is_job_name("ladder-a\n")


def test_the_trainer_gets_no_setting_a_second_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its command line has every setting that was set; a profile must not change one that was not."""
    for name, value in {"PNAS_PROFILE": "digits", "PNAS_LR": "0.2", "PNAS_DEVICE_FILES": "/dev"}.items():
        monkeypatch.setenv(name, value)
    environs: list[dict[str, str]] = []

    def start(*arguments: Any, **_: Any) -> None:
        environs.append(arguments[4])
        raise RequestError("seen")

    monkeypatch.setattr("launcher.local.submitter.start_job", start)
    monkeypatch.setattr("launcher.local.submitter.check_paths", lambda *_: None)
    spec = local_spec(resolve_settings({}, None, os.environ), tmp_path)
    assert (spec.train.lr, spec.train.epochs) == (0.2, 10)
    with pytest.raises(RequestError, match="seen"):
        LocalSubmitter(LocalJobs(tmp_path / "jobs")).submit(spec)
    assert not environs[0].keys() & {"PNAS_PROFILE", "PNAS_LR"}
    assert environs[0]["PNAS_DEVICE_FILES"] == "/dev"
