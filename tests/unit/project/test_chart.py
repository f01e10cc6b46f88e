"""The chart's files agree with the launcher, and its schema is closed."""

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from docs.chart import CHART, schema
from launcher import __name__ as program
from launcher.cluster.defaults import CONFIG_MAP, KEY, NO_DEFAULTS
from launcher.jobs import KIND_NAMES
from launcher.settings.options import ClusterOptions, JobOptions
from trainer.run.metrics_server import HARDWARE, PROGRESS
from trainer.shared.config import TrainConfig

SCHEMA = schema()


def at(reference: str) -> dict[str, Any]:
    """Return the part of the schema that a `$ref` names."""
    found: dict[str, Any] = SCHEMA
    for name in reference.removeprefix("#/").split("/"):
        found = found[name]
    return found


def test_every_setting_that_can_have_a_default_is_a_value() -> None:
    claims = {"data_claim", "output_claim"}
    names = {*JobOptions.model_fields, *TrainConfig.model_fields} - NO_DEFAULTS - claims - {"rank_table"}
    defaults = at("#/definitions/defaults")["properties"]
    assert set(defaults) == names
    assert set(SCHEMA["properties"]["job"]["properties"]) == {*names, "enabled", "name", "backend", "mode", "resume"}
    assert SCHEMA["properties"]["defaults"] == SCHEMA["properties"]["modes"]["properties"]["eval"]
    assert SCHEMA["properties"]["defaults"] == {"$ref": "#/definitions/defaults"}


def test_a_device_and_a_backend_that_only_a_checkout_has_are_no_values() -> None:
    assert at("#/definitions/device")["enum"] == ["auto", "npu", "cuda", "cpu"]
    assert at("#/definitions/backend")["enum"] == ["auto", *KIND_NAMES]


def parts(part: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every mapping of the schema, at every depth, with its path."""
    if isinstance(part, dict):
        yield path, part
        for name, below in part.items():
            yield from parts(below, f"{path}/{name}")
    elif isinstance(part, list):
        for number, below in enumerate(part):
            yield from parts(below, f"{path}/{number}")


def test_every_object_is_closed_or_has_values_of_one_kind() -> None:
    """Users choose the names of resources, labels and variables; all other names are known."""
    objects = {path: part for path, part in parts(SCHEMA) if part.get("type") == "object"}
    open_ones = {path: part for path, part in objects.items() if part.get("additionalProperties") is not False}
    assert open_ones.pop("/properties/global") == {"type": "object"}, "Helm's own"
    for path, part in open_ones.items():
        assert part["additionalProperties"]["type"], path
        assert "properties" not in part, path


def test_every_reference_leads_to_a_definition_and_every_definition_is_used() -> None:
    references = {str(part["$ref"]) for _, part in parts(SCHEMA) if isinstance(part.get("$ref"), str)}
    assert all(at(reference) for reference in references)
    assert {reference.rpartition("/")[2] for reference in references} == set(SCHEMA["definitions"])


def values(part: Any, path: str = "") -> Iterator[str]:
    """Yield the path of every value of values.yaml that is not a mapping of further values."""
    for name, below in part.items():
        if isinstance(below, dict) and below and f"{path}{name}" != "tensorboard.resources":
            yield from values(below, f"{path}{name}.")
        else:
            yield f"{path}{name}"


def test_every_value_and_every_setting_is_described() -> None:
    page = (CHART / "README.md").read_text(encoding="utf-8")
    paths = list(values(yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))))
    assert "claims.data.size" in paths
    described = (*paths, *at("#/definitions/defaults")["properties"])
    assert [name for name in described if f"\n| `{name}` |" not in page] == []


def test_the_dashboard_shows_figures_that_are_served_and_joins_npu_exporters_pods() -> None:
    dashboard = json.loads((CHART / "files" / "dashboard.json").read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    served = {"pnas_run_info", *(f"pnas_{row[2]}" for row in PROGRESS), *(f"pnas_{row[1]}" for row in HARDWARE)}
    assert set(re.findall(r"pnas_\w+", " ".join(queries))) <= served
    # Its names in MindCluster's documentation of npu-exporter.
    exporters = {f"npu_chip_info_{name}" for name in ("utilization", "hbm_used_memory", "health_status")}
    assert set(re.findall(r"npu_\w+", " ".join(queries))) == exporters
    joined = [query for query in queries if "npu_chip" in query]
    assert all('"pod_name", "(.+)") * on (namespace, pod) group_left (run) pnas_run_info{' in query for query in joined)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_the_launcher_looks_for_the_objects_that_the_chart_makes() -> None:
    text = (CHART / "templates" / "defaults.yaml").read_text(encoding="utf-8")
    assert f"name: {CONFIG_MAP}" in text
    assert f"{KEY}: |" in text
    assert f"python -m {program} submit" in (CHART / "templates" / "NOTES.txt").read_text(encoding="utf-8")


def test_the_charts_own_pods_have_the_launchers_defaults() -> None:
    text = (CHART / "templates" / "_helpers.tpl").read_text(encoding="utf-8")
    pods, grace_s = ClusterOptions(), TrainConfig().grace_s
    own = f'dict "image_pull_policy" "{pods.image_pull_policy}" "user" {pods.user} "group" {pods.group}'
    assert f'{own} "grace_s" {grace_s:g} }}}}' in text
