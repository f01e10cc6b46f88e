"""The chart's generated files say what the launcher says, and its schema takes what the launcher takes."""

from typing import Any

import pytest

from docs.chart import CHART, files, schema
from launcher import __name__ as program
from launcher.defaults import CONFIG_MAP, KEY, NO_DEFAULTS
from launcher.spec import JobOptions
from trainer.config import TrainConfig


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


def test_every_value_is_described_and_every_object_is_closed() -> None:
    described = files()["README.md"]
    for name in ("defaults", "modes", "claims.data.size", "queue.capability"):
        assert f"| `{name}` |" in described
    open_ones = [name for name, part in schema()["properties"].items() if part.get("additionalProperties") is not False]
    assert open_ones == ["global"], "Helm's own"


def test_the_launcher_looks_for_what_the_chart_makes() -> None:
    text = (CHART / "templates" / "defaults.yaml").read_text(encoding="utf-8")
    assert f"name: {CONFIG_MAP}" in text
    assert f"{KEY}: |" in text
    assert f"python -m {program} submit" in (CHART / "templates" / "NOTES.txt").read_text(encoding="utf-8")
