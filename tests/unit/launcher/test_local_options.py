"""An option that only a cluster can honour is refused for a job on this machine, and a variable is named."""

from pathlib import Path
from typing import Any

import pytest

from launcher.errors import RequestError
from launcher.local.cluster_only import ignored_variables
from launcher.local.jobs import LocalJobs
from launcher.local.submitter import LocalSubmitter
from launcher.settings.layers import resolve_settings
from launcher.settings.options import ClusterOptions
from launcher.settings.spec import JobSpec
from tests.unit.launcher.test_settings import NOON
from trainer.records.folder import create_run_folder
from trainer.shared.config import Layer, resolve_train_config

VALUES: dict[str, Any] = {"deadline": "3s", "ttl": "1s", "retries": 5, "image": "foo", "queue": "q", "namespace": "n"}


def build(folder: Path, flags: dict[str, Any], profile: str | None = None, **environ: str) -> JobSpec:
    settings = resolve_settings(flags, profile, environ)
    return LocalSubmitter(LocalJobs(folder / "jobs")).build(settings, now=NOON)


@pytest.mark.parametrize("field", VALUES)
def test_an_option_of_clusters_is_refused(tmp_path: Path, field: str) -> None:
    with pytest.raises(RequestError, match=f"^--{field}: only jobs on a cluster can honour it; leave it out"):
        build(tmp_path, {field: VALUES[field]})


def test_a_profile_for_clusters_is_refused_and_named(tmp_path: Path) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text("deadline: 3d\nbatch_size: 8\n")
    with pytest.raises(RequestError, match=f"^--deadline \\(from profile {profile}\\): only jobs on a cluster"):
        build(tmp_path, {}, str(profile))


def test_a_variable_for_clusters_is_named_and_not_refused(tmp_path: Path) -> None:
    build(tmp_path, {}, PNAS_IMAGE="registry.example/pnas:1", PNAS_HARDWARE="a3")
    assert ignored_variables({"PNAS_IMAGE": "x", "PNAS_NAMESPACE": "n", "PNAS_LR": "1"}) == [
        "not used by a job on this machine: PNAS_IMAGE"
    ]
    assert ignored_variables({}) == []


def test_a_dry_run_names_the_variables_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("data/train/a", "data/val/a"):
        (tmp_path / name).mkdir(parents=True)
    spec = build(tmp_path, {"data_path": tmp_path / "data", "output": tmp_path / "output"})
    monkeypatch.setenv("PNAS_DEADLINE", "3h")
    _, warnings = LocalSubmitter(LocalJobs(tmp_path / "jobs")).check(spec, ask_server=False)
    assert warnings == ["not used by a job on this machine: PNAS_DEADLINE"]


def test_a_job_without_options_of_clusters_is_built(tmp_path: Path) -> None:
    assert VALUES.keys() <= ClusterOptions.model_fields.keys()
    build(tmp_path, {"lr": 0.1}, "digits")


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ({}, "pnas-full-large-"),
        ({"mode": "eval", "weights": "w"}, "pnas-eval-"),
        ({"mode": "eval", "weights": "w", "model": "pnasnet5tiny"}, "pnas-eval-tiny-"),
    ],
)
def test_a_name_claims_no_model_that_the_weights_decide(tmp_path: Path, flags: dict[str, Any], name: str) -> None:
    assert build(tmp_path, flags).name == f"{name}{NOON:%m%d-%H%M%S}"
    config, _ = resolve_train_config([Layer("flag", {**flags, "output": tmp_path})])
    run = create_run_folder(config, is_first_node=True, is_single_node=True, now=0)
    expected = name.removeprefix("pnas-").replace("large", "pnasnet5large").replace("tiny", "pnasnet5tiny")
    assert run.name.startswith(f"{expected}19")
