"""The documents name only targets, files and modules that exist, and `make help` describes each target."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
DOCUMENTS = sorted(file for pattern in ("*.md", "docs/*.md", "charts/*/README.md") for file in ROOT.glob(pattern))
FILE = re.compile(r"`((?:benchmarks|charts|docker|k8s|launcher|requirements|tests|trainer)/[\w./-]*)`")

every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)


@every_document
def test_every_target_that_a_document_names_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    code = re.findall(r"`([^`]*)`", text) + re.findall(r"^ *\$? *(make .*)$", text, re.MULTILINE)
    names = {target for part in code for target in re.findall(r"\bmake ([a-z-]+)", part)}
    assert names <= TARGETS


@every_document
def test_every_file_that_a_document_names_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    links = {document.parent / link for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)}
    files = {ROOT / name for name in FILE.findall(text)}
    assert not [str(file) for file in sorted(links | files) if not file.exists()]


@every_document
def test_every_module_that_a_document_runs_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    modules = set(re.findall(r"python -m ((?:benchmarks|docs|launcher|tests|trainer)[\w.]*\w)", text))
    paths = {module: ROOT / module.replace(".", "/") for module in modules}
    assert not [
        module
        for module, path in paths.items()
        if not path.with_suffix(".py").exists() and not (path / "__main__.py").exists()
    ]


def test_the_readme_names_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "$ make run" in readme
    assert "$ make test" in readme


def test_every_target_has_a_line_of_help_and_is_phony() -> None:
    described = set(re.findall(r"^([a-z-]+):.*  ## \w", MAKEFILE, re.MULTILINE))
    assert described == TARGETS
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert set(phony.split()) == TARGETS
