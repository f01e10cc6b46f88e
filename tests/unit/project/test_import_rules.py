"""The import rules of pyproject.toml hold for modules that do not exist yet."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# The program behind the `lint-imports` command.
LINT_IMPORTS = (sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the sources of both programs, and their import rules."""
    folder = tmp_path_factory.mktemp("sources")
    for package in ("trainer", "launcher"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def _broken_rules(sources: Path, added: dict[str, str]) -> list[str]:
    """Check the imports with `added` modules and lines; return the names of the broken rules."""
    before = {name: (sources / name).read_text() if (sources / name).exists() else None for name in added}
    try:
        for name, text in added.items():
            (sources / name).write_text((before[name] or "") + text)
        done = subprocess.run(LINT_IMPORTS, cwd=sources, capture_output=True, text=True, timeout=300, check=False)
    finally:
        for name, text_before in before.items():
            (sources / name).unlink() if text_before is None else (sources / name).write_text(text_before)
    assert "Contracts: " in done.stdout, done.stdout + done.stderr
    broken = re.findall(r"^(.+) BROKEN\b", done.stdout, flags=re.MULTILINE)
    assert bool(broken) == (done.returncode != 0)
    return broken


def test_the_sources_keep_every_rule(sources: Path) -> None:
    assert _broken_rules(sources, {}) == []


@pytest.mark.parametrize("module", ["new", "records.new"])
def test_a_new_module_of_the_trainer_that_the_launcher_imports_breaks_a_rule(sources: Path, module: str) -> None:
    file = f"trainer/{module.replace('.', '/')}.py"
    broken = _broken_rules(sources, {file: "", "launcher/errors.py": f"\nimport trainer.{module}\n"})
    assert "the launcher imports trainer.shared, and nothing else of the trainer" in broken


def test_a_new_module_of_trainer_shared_is_free_for_the_launcher_but_imports_nothing_else(sources: Path) -> None:
    added = {"trainer/shared/new.py": "", "launcher/errors.py": "\nimport trainer.shared.new\n"}
    assert _broken_rules(sources, added) == []
    added["trainer/shared/new.py"] = "import trainer.seeds\n"
    assert _broken_rules(sources, added) == ["the trainer's packages import only those below them"]


def test_a_new_package_of_the_trainer_must_find_its_place(sources: Path) -> None:
    assert _broken_rules(sources, {"trainer/new.py": ""}) == ["the trainer's packages import only those below them"]
