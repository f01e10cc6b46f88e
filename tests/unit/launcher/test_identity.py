"""A job's identity is what was set: a release with more options, or other defaults of presets, finds the same job."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.cluster.defaults import parse_defaults
from launcher.cluster.same_job import is_same_job, running_note
from launcher.jobs import KIND_NAMES
from launcher.kinds import kind_named
from launcher.kinds.labels import ATTEMPT_ANNOTATION, SPEC_ANNOTATION, SPEC_HASH_LABEL
from launcher.kinds.objects import attempt_number, spec_of
from launcher.manifests.pod_spec import make_pod_spec
from launcher.settings.layers import resolve_settings
from launcher.settings.options import ClusterOptions
from launcher.settings.spec import JobSpec, job_digest
from tests.unit.launcher.test_render import rendered_objects, spec

ROOT = Path(__file__).parents[3]
TRAIN_OPTION = '    label_noise: float = option(0.0, "Share of wrong labels.", group="Recipe")\n'
POD_OPTION = '    automount: bool = option(False, "Mount the token of the account.", group="Pods")\n'


def render_in(folder: Path, backend: str) -> list[dict[str, Any]]:
    """Render a job with the launcher whose sources are in the folder."""
    options = ("--npus", "8", "--image", "x/y:1", "--backend", backend, "--nodes", "2", "--lr", "0.1", "--retries", "2")
    words = [sys.executable, "-m", "launcher", "render", *options]
    result = subprocess.run(words, cwd=folder, env={}, capture_output=True, text=True, check=True, timeout=240)
    return list(yaml.safe_load_all(result.stdout))


@pytest.mark.parametrize("backend", KIND_NAMES)
def test_a_release_with_one_more_option_in_each_model_renders_the_same_job(tmp_path: Path, backend: str) -> None:
    for package in ("trainer", "launcher"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file, cls, line in (
        (tmp_path / "trainer/shared/config/train.py", "class TrainConfig(", TRAIN_OPTION),
        (tmp_path / "launcher/settings/options.py", "class ClusterOptions(", POD_OPTION),
    ):
        head, model, rest = file.read_text().partition(cls)
        before, config, after = rest.partition("    model_config")
        file.write_text(head + model + before + line + config + after)
    objects, newer = render_in(ROOT, backend), render_in(tmp_path, backend)
    older_spec, newer_spec = (
        json.loads(items[-1]["metadata"]["annotations"].pop(SPEC_ANNOTATION)) for items in (objects, newer)
    )
    assert newer == objects, "the same names, labels and pods"
    assert newer_spec["train"].pop("label_noise") == 0.0
    assert newer_spec["pods"].pop("automount") is False
    assert newer_spec == older_spec


@pytest.mark.parametrize("backend", KIND_NAMES)
def test_a_job_of_an_older_release_is_the_same_job(backend: str) -> None:
    """Its annotation lacks the options that came later, and its label has the digest of its time."""
    asked = spec(backend, lr=0.1, retries=2)
    job = rendered_objects(asked)[-1]
    record = json.loads(job["metadata"]["annotations"][SPEC_ANNOTATION])
    for section, name in (("train", "accumulate"), ("pods", "hardware"), ("pods", "driver")):
        del record[section][name]
    job["metadata"]["annotations"][SPEC_ANNOTATION] = json.dumps(record)
    job["metadata"]["labels"][SPEC_HASH_LABEL] = "of-another-time"
    assert is_same_job(job, asked)
    assert not is_same_job(job, spec(backend, lr=0.1, retries=2, accumulate=2)), "a later option that is set counts"
    assert not is_same_job(job, spec(backend, lr=0.1, retries=2, driver="host"))


DEFAULTS = (
    {"image_pull_policy": "Always"},
    {"image": "r/pnas:2"},
    {"hardware": "atlas-800-9000"},
    {"node_selector": ["zone=a"], "queue": "research", "memory": "64Gi"},
    {"epochs": 7, "data_path": "/data/imagenet", "output": "/output/team"},
    {"npus": 4, "nodes": 2},
    {"modes": {"performance": {"steps": 9}, "full": {"steps": 8}}},
    {"user": 7, "lr": 0.3},
)


def with_defaults(values: dict[str, Any], **flags: Any) -> JobSpec:
    """Return the job of a user in a namespace whose administrator has published defaults."""
    defaults = parse_defaults(json.dumps(values), "training")
    return make_pod_spec(resolve_settings(flags, None, {}, defaults=defaults), kind_named("volcano"))


@pytest.mark.parametrize("flags", [{}, {"mode": "performance"}, {"mode": "full", "npus": 8, "lr": 0.1}], ids=str)
@pytest.mark.parametrize("values", DEFAULTS, ids="-".join)
def test_a_changed_default_of_the_administrator_does_not_make_another_job(
    values: dict[str, Any], flags: dict[str, Any]
) -> None:
    before = with_defaults({"image": "r/pnas:1"}, **flags)
    after = with_defaults({"image": "r/pnas:1", **values}, **flags)
    assert after != before, "the pods and the trainer get the default"
    assert (after.digest, after.name) == (before.digest, before.name)
    record = json.loads(after.model_dump_json())
    assert job_digest(record) == before.digest
    job = rendered_objects(before)[-1]
    assert is_same_job(job, after)
    assert "the administrator's defaults have changed since: " in running_note(job, after)
    assert with_defaults({"image": "r/pnas:1", **values}, **flags, grace_s=9).digest != before.digest


def test_the_administrators_first_defaults_do_not_make_another_job() -> None:
    flags: dict[str, Any] = {"image": "r/pnas:1", "npus": 8}
    before = spec()
    assert before.digest == with_defaults({"image": "r/pnas:2", "image_pull_policy": "Always"}, **flags).digest
    assert running_note(rendered_objects(before)[-1], before).endswith("the same job was submitted before")


@pytest.mark.parametrize(
    "flags",
    [
        {"lr": 0.2},
        {"mode": "performance"},
        {"retries": 1},
        {"env": ("A=b",)},
        {"image": "r/pnas:2"},
        {"hardware": "atlas-800-9000"},
        {"hardware": "atlas-800-9010"},
        {"output": Path("/output/below")},
        {"resume": Path("/output/other")},
    ],
    ids=str,
)
def test_jobs_with_other_settings_are_other_jobs(flags: dict[str, Any]) -> None:
    assert spec(**flags).digest != spec().digest
    assert spec(**flags).name != spec().name


def test_a_set_option_counts_even_if_it_equals_the_default() -> None:
    """Without it, the value can come from weights or a checkpoint."""
    assert spec(image_size=331).digest != spec().digest


def test_a_cluster_option_that_equals_its_default_does_not_count() -> None:
    assert spec(retries=ClusterOptions().retries).digest == spec().digest
    assert spec(hardware=None).digest == spec().digest
    assert spec(device="cpu", hardware="a3").digest == spec(device="cpu").digest, "a job without NPUs has no preset"


def test_a_new_identity_format_changes_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release raises the format when a default gets another meaning."""
    before = spec().digest
    monkeypatch.setattr("launcher.settings.spec._IDENTITY_FORMAT", 2)
    assert spec().digest != before


def test_a_record_is_read_back_and_an_object_without_one_is_another_job() -> None:
    named = spec(hardware="atlas-800-9000")
    assert JobSpec.model_validate_json(named.model_dump_json()) == named
    assert job_digest(named.model_dump(mode="json")) == named.digest
    kind = kind_named(named.backend)
    job = {"apiVersion": kind.resource.api_version, "metadata": {"name": "a", "annotations": {SPEC_ANNOTATION: "{"}}}
    assert not is_same_job(job, named)


@pytest.mark.parametrize("record", ["{", "[" * 100_000, "[]", '{"train": null}', '{"train": []}', '{"pods": "x"}'])
def test_a_record_that_a_user_has_damaged_counts_as_none(record: str) -> None:
    """`list` reads the records of a whole namespace."""
    job = {"metadata": {"annotations": {SPEC_ANNOTATION: record, ATTEMPT_ANNOTATION: "two"}}}
    assert (spec_of(job), attempt_number(job)) == ({}, 1)
