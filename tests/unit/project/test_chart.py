"""The chart's generated files say what the launcher says, and its schema takes what the launcher takes."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from docs.chart import CHART, files, schema
from launcher import __name__ as program
from launcher.cluster.defaults import CONFIG_MAP, KEY, NO_DEFAULTS
from launcher.settings.options import JobOptions
from trainer.shared.config import TrainConfig


@pytest.mark.parametrize("name", sorted(files()))
def test_no_file_is_stale(name: str) -> None:
    assert (CHART / name).read_text(encoding="utf-8") == files()[name], "write it anew: python -m docs.chart"


def test_every_setting_that_can_have_a_default_is_a_value() -> None:
    known = (
        {*JobOptions.model_fields, *TrainConfig.model_fields}
        - NO_DEFAULTS
        - {"data_claim", "output_claim", "rank_table"}
    )
    properties: dict[str, Any] = schema()["properties"]
    assert set(properties["defaults"]["properties"]) == known
    assert set(properties["modes"]["properties"]["eval"]["properties"]) == known


def test_the_templates_know_no_setting_that_the_chart_has_not() -> None:
    facts = json.loads(files()["files/settings.json"])
    known = {"name", "backend", "data_claim", "output_claim", *schema()["properties"]["job"]["properties"]}
    for part in ("defaults", "nullable", "listed", "pods"):
        assert set(facts[part]) <= known, part


def test_a_device_that_only_a_checkout_has_is_no_value() -> None:
    settings: dict[str, Any] = schema()["properties"]["defaults"]["properties"]
    assert settings["device"]["enum"] == ["auto", "npu", "cuda", "cpu"]


def objects(part: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema of an object, at every depth, by its place."""
    if isinstance(part, dict):
        if part.get("type") == "object":
            yield path, part
        for name, below in part.items():
            yield from objects(below, f"{path}/{name}")
    elif isinstance(part, list):
        for number, below in enumerate(part):
            yield from objects(below, f"{path}/{number}")


def test_every_object_is_closed_or_has_values_of_one_kind() -> None:
    """Names of resources, labels and variables are the user's own; all others are known."""
    open_ones = {path: part for path, part in objects(schema()) if part.get("additionalProperties") is not False}
    assert open_ones.pop("/properties/global") == {"type": "object"}, "Helm's own"
    for path, part in open_ones.items():
        assert part["additionalProperties"]["type"], path
        assert "properties" not in part, path


def values(part: Any, path: str = "") -> Iterator[str]:
    """Every value of values.yaml that is none of a mapping of values."""
    for name, below in part.items():
        if isinstance(below, dict) and below and f"{path}{name}" != "tensorboard.resources":
            yield from values(below, f"{path}{name}.")
        else:
            yield f"{path}{name}"


def test_every_value_and_every_setting_is_described() -> None:
    described = (CHART / "README.md").read_text(encoding="utf-8")
    found = list(values(yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))))
    assert "claims.data.size" in found
    assert [
        name
        for name in (*found, *schema()["properties"]["defaults"]["properties"])
        if f"\n| `{name}` |" not in described
    ] == []


def test_the_launcher_looks_for_what_the_chart_makes() -> None:
    text = (CHART / "templates" / "defaults.yaml").read_text(encoding="utf-8")
    assert f"name: {CONFIG_MAP}" in text
    assert f"{KEY}: |" in text
    assert f"python -m {program} submit" in (CHART / "templates" / "NOTES.txt").read_text(encoding="utf-8")
