"""The pinned requirements: complete, hashed, without addresses, and agreed between the two files."""

import re
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "requirements").glob("*.txt"))
PIN = re.compile(r"^([a-z0-9._-]+)==([^ ;\\]+)(?: ; ([^\\]+))?")


def _pins(path: Path) -> set[tuple[str, str, str | None]]:
    found = (PIN.match(line) for line in path.read_text().splitlines())
    return {(pin[1], pin[2], pin[3] and pin[3].strip()) for pin in found if pin}


def _declared(*extras: str) -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *(text for extra in extras for text in project["optional-dependencies"][extra])]
    names = (re.split(r"[<>=\[;]", text)[0].strip().lower() for text in texts)
    return {name for name in names if name != "pnas"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_package_is_pinned_with_hashes_and_no_address(path: Path) -> None:
    text = path.read_text()
    requirements = [block for block in re.split(r"\n(?=[a-z])", text) if block.strip()]
    assert all(PIN.match(block) and "--hash=sha256:" in block for block in requirements)
    assert "://" not in text
    assert "index" not in re.sub(r"^[a-z0-9._-]+==", "", text, flags=re.MULTILINE)


def test_every_declared_dependency_is_pinned() -> None:
    for path in FILES:
        extras = ("demo",) if path.name.startswith("run-") else ("demo", "test", "dev")
        assert _declared(*extras) <= {name for name, _, _ in _pins(path)}, path.name


def test_what_runs_is_what_was_tested() -> None:
    for run in (path for path in FILES if path.name.startswith("run-")):
        assert _pins(run) <= _pins(run.with_name(run.name.replace("run-", "test-")))


def test_the_oldest_and_the_newest_torch_are_pinned() -> None:
    torches = {version for path in FILES for name, version, _ in _pins(path) if name == "torch"}
    assert {"2.9.0", "2.14.1"} <= torches
