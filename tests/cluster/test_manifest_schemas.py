"""Whatever the three ways give is tidy YAML and valid on Kubernetes 1.29 to 1.37, by its published schemas; offline."""

import json
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
from launcher.manifests.offline import manifests
from tests.cluster.helm import ALL_ON, HELMS, template
from tests.cluster.job_settings import settings

VERSIONS = [f"1.{minor}" for minor in range(29, 38)]
RULES = Path(__file__).parents[2] / ".yamllint.yaml"
# Helm writes values as JSON on one line, and lists its own way.
AS_RENDERED = "rules: {line-length: disable, commas: disable, indentation: {spaces: 2, indent-sequences: whatever}}"


def rendered() -> dict[str, str]:
    """Text by what gave it: the chart with nothing and with all, by both Helms; each plain manifest."""
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
    """What the launcher gives for each kind of job, one node and two, and every option on and off."""
    for backend in ("batch", "volcano"):
        for nodes in (1, 2):
            for options in ("plain", "everything", "cpu"):
                yield from manifests(settings(backend, 8, nodes, options), None)


def known(item: dict[str, Any]) -> dict[str, Any] | None:
    """As Kubernetes' own schemas have it: of a Volcano Job its pod; of what is Volcano's alone, nothing."""
    if not item["apiVersion"].partition("/")[0].endswith(".volcano.sh"):
        return item
    if item["kind"] != "Job":
        return None
    pod = item["spec"]["tasks"][0]["template"]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", **pod["metadata"]}, "spec": pod["spec"]}


@pytest.fixture
def reading_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would read the schemas anew for each object, which takes most of the time."""
    monkeypatch.setattr(kubernetes_validate.utils, "schema_contents", cache(kubernetes_validate.utils.schema_contents))


@pytest.mark.usefixtures("reading_once")
def test_every_object_is_valid_on_every_version(texts: dict[str, str]) -> None:
    objects = [item for text in texts.values() for item in yaml.safe_load_all(text) if item]
    wanted = [one for item in (*objects, *jobs()) if (one := known(item)) is not None]
    unique = {json.dumps(one, sort_keys=True): one for one in wanted}
    assert len(unique) > 30
    for version in VERSIONS:
        for one in unique.values():
            kubernetes_validate.validate(one, version, strict=True)


def test_a_misspelt_field_would_be_found(texts: dict[str, str]) -> None:
    (job,) = yaml.safe_load_all(texts["job-1-npu.yaml"])
    job["spec"]["template"]["spec"]["containers"][0]["imge"] = "x"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, VERSIONS[0], strict=True)


def test_what_is_rendered_is_tidy(texts: dict[str, str]) -> None:
    rules = YamlLintConfig(AS_RENDERED)
    rules.extend(YamlLintConfig(RULES.read_text(encoding="utf-8")))
    # Helm 4 ends with a line that is empty.
    found = {name: [str(one) for one in linter.run(text.rstrip() + "\n", rules)] for name, text in texts.items()}
    assert {name: lines for name, lines in found.items() if lines} == {}
