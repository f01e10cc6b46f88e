"""The objects of chart, launcher and plain manifests are tidy YAML and valid on Kubernetes 1.29 to 1.37.

The test uses the published schemas, offline.
"""

import json
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from yamllint import linter
from yamllint.config import YamlLintConfig

from docs.chart import CHART
from docs.manifests import FOLDER
from launcher.commands.render import manifests_of
from launcher.manifests.render import to_stream
from tests.cluster.support.helm import ALL_ON, HELMS, template
from tests.cluster.support.job_settings import settings
from tests.cluster.testbed.artifacts.binaries import kubernetes

VERSIONS = [f"1.{minor}" for minor in range(29, 38)]
RULES = Path(__file__).parents[2] / ".yamllint.yaml"
# Helm writes values as JSON on one line, and indents lists differently.
AS_RENDERED = "rules: {line-length: disable, commas: disable, indentation: {spaces: 2, indent-sequences: whatever}}"


def rendered() -> dict[str, str]:
    """Return each text by its source: each plain manifest, and the chart with no and all options by both Helms."""
    sets: dict[str, Sequence[str]] = {"nothing": (), "all": ALL_ON, "batch": (*ALL_ON, "--set", "job.backend=batch")}
    texts = {
        f"{version}, {name}": template(program(), CHART, *values)
        for version, program in HELMS.items()
        for name, values in sets.items()
    }
    return texts | {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return rendered()


def jobs() -> Iterator[Any]:
    """Yield the launcher's objects for each kind of job, on one node and on two, with every option on and off."""
    for backend in ("batch", "volcano"):
        for nodes in (1, 2):
            for options in ("plain", "everything", "cpu"):
                yield from manifests_of(settings(backend, 8, nodes, options), None)


def kubernetes_part(item: dict[str, Any]) -> dict[str, Any] | None:
    """Return the part that Kubernetes' schemas know: a Volcano Job's pod, and nothing of other Volcano objects."""
    if not item["apiVersion"].partition("/")[0].endswith(".volcano.sh"):
        return item
    if item["kind"] != "Job":
        return None
    pod = item["spec"]["tasks"][0]["template"]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", **pod["metadata"]}, "spec": pod["spec"]}


@pytest.fixture
def cached_schemas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the schemas once: to read them for each object would take most of the time."""
    monkeypatch.setattr(kubernetes_validate.utils, "schema_contents", cache(kubernetes_validate.utils.schema_contents))


@pytest.mark.usefixtures("cached_schemas")
def test_every_object_is_valid_on_every_version(texts: dict[str, str]) -> None:
    objects = [item for text in texts.values() for item in yaml.safe_load_all(text) if item]
    parts = [part for item in (*objects, *jobs()) if (part := kubernetes_part(item)) is not None]
    unique = {json.dumps(part, sort_keys=True): part for part in parts}
    assert len(unique) > 30
    for version in VERSIONS:
        for part in unique.values():
            kubernetes_validate.validate(part, version, strict=True)


def test_kubectl_reads_every_text_as_the_launcher_means_it() -> None:
    # Each is a number, a date, a boolean or nothing for some YAML reader.
    texts = ("1e3", "0o17", "12345678e5", "0469839881768e80", "N", "on", "~", "1:30", "1_000", "2024-01-01", "0x1F")
    options = {
        "env": (
            *(f"{name}={text}" for name, text in zip("ABCDEFGHIJK", texts, strict=True)),
            "N=.inf",
            "Y=a\nb \u2028",
        ),
        "node_selector": tuple(f"{name}={text}" for name, text in (("1e3", "1e3"), ("N", "N"), ("007", "1.10"))),
        "toleration": ("k=5e2:NoSchedule", "5e2=010"),
        **{"priority_class": "1e3", "image_pull_secret": ("1e9",), "data_claim": "5e1", "output_claim": "0x1f"},
    }
    plain = {"backend": "batch", "npus": 1, "mode": "full", "image": "r/pnas:1", "name": "n"}
    (job,) = manifests_of({**plain, **options}, None)
    command = [str(kubernetes() / "kubectl"), "label", "--local", "--filename=-", "--output=json", "added=label"]
    read = subprocess.run(command, input=to_stream([job]), capture_output=True, text=True, check=True).stdout
    job["metadata"]["labels"]["added"] = "label"
    assert json.loads(read) == job


def test_a_misspelt_field_would_be_found(texts: dict[str, str]) -> None:
    (job,) = yaml.safe_load_all(texts["job-1-npu.yaml"])
    job["spec"]["template"]["spec"]["containers"][0]["imge"] = "x"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, VERSIONS[0], strict=True)


def test_rendered_texts_are_tidy(texts: dict[str, str]) -> None:
    rules = YamlLintConfig(AS_RENDERED)
    rules.extend(YamlLintConfig(RULES.read_text(encoding="utf-8")))
    # Helm 4 ends with an empty line.
    problems = {
        name: [str(problem) for problem in linter.run(text.rstrip() + "\n", rules)] for name, text in texts.items()
    }
    assert {name: lines for name, lines in problems.items() if lines} == {}
