"""The project has one version, and its changelog has the form that tools and readers know."""

import re
from pathlib import Path

import yaml

from tests.unit.project.test_requirements import project

ROOT = Path(__file__).parents[3]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
HEADING = re.compile(r"\[Unreleased\]|\[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}")
KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_chart_has_the_projects_version() -> None:
    chart = yaml.safe_load((ROOT / "charts" / "pnas" / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["version"] == chart["appVersion"] == project()["version"]


def test_every_example_has_the_projects_version() -> None:
    folders = ("benchmarks", "charts", "docs", "k8s", "launcher")
    files = [file for name in folders for file in (ROOT / name).rglob("*") if file.suffix in {".md", ".py", ".yaml"}]
    texts = [file.read_text(encoding="utf-8") for file in (ROOT / "README.md", *files)]
    versions = {tag for text in texts for tag in re.findall(r"/pnas:(\d[\w.]*\d)", text)}
    assert versions == {project()["version"]}


def test_the_changelog_begins_with_the_unreleased_changes() -> None:
    headings = re.findall(r"^## (.*)$", CHANGELOG, re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert all(HEADING.fullmatch(heading) for heading in headings)
    assert set(re.findall(r"^### (.*)$", CHANGELOG, re.MULTILINE)) <= KINDS
