"""The documents name only targets that the Makefile has, and `make help` describes each target."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
DOCUMENTS = sorted(file for pattern in ("*.md", "docs/*.md", "charts/*/README.md") for file in ROOT.glob(pattern))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_target_that_a_document_names_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    code = re.findall(r"`([^`]*)`", text) + re.findall(r"^ *\$? *(make .*)$", text, re.MULTILINE)
    named = {target for part in code for target in re.findall(r"\bmake ([a-z-]+)", part)}
    assert named <= TARGETS


def test_the_readme_names_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "$ make run" in readme
    assert "$ make test" in readme


def test_every_target_has_a_line_of_help_and_is_phony() -> None:
    described = set(re.findall(r"^([a-z-]+):.*  ## \w", MAKEFILE, re.MULTILINE))
    assert described == TARGETS
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert set(phony.split()) == TARGETS
