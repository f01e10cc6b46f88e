"""The pinned requirements are complete and hashed, contain no addresses, and agree between the files."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / "requirements").glob("*.txt"))
# x86_64's torch of the images, which another index has.
X86_64 = ROOT / "requirements" / "torch-2.9.0.txt"
EXTRAS = {"run": ("demo",), "test": ("demo", "test", "dev"), "cpu": (), "npu": ("npu",)}
PIN = re.compile(r"^([a-z0-9._-]+)==([^ ;\\]+)(?: ; ([^\\]+))?")


def pins(path: Path) -> set[tuple[str, str, str | None]]:
    """Return each package's name, version and marker."""
    matches = (PIN.match(line) for line in path.read_text().splitlines())
    return {(pin[1], pin[2], pin[3] and pin[3].strip()) for pin in matches if pin}


def project() -> dict[str, Any]:
    """Return the project's table of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def _declared(*extras: str) -> set[str]:
    table = project()
    texts = [*table["dependencies"], *(text for extra in extras for text in table["optional-dependencies"][extra])]
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
    for path in set(FILES) - {X86_64}:
        assert _declared(*EXTRAS[path.name.partition("-")[0]]) <= {name for name, _, _ in pins(path)}, path.name


def test_make_run_installs_only_tested_versions() -> None:
    for run in (path for path in FILES if path.name.startswith("run-")):
        assert pins(run) <= pins(run.with_name(run.name.replace("run-", "test-")))


@pytest.mark.parametrize("device", ["cpu", "npu"])
def test_an_image_has_tested_versions_except_of_numpy_and_of_canns_own_requirements(device: str) -> None:
    tested = {(name, version) for name, version, _ in pins(ROOT / "requirements" / "test-2.9.0.txt")}
    pinned = pins(ROOT / "requirements" / f"{device}-2.9.0.txt") | pins(X86_64)
    image = {(name, version.partition("+")[0]) for name, version, _ in pinned}
    tested_names = {name for name, _ in tested}
    untested = {name for name, version in image - tested if name in tested_names}
    assert untested == ({"numpy"} if device == "npu" else set())
    assert {name for name, _ in image} - tested_names <= _declared("npu") | {"pycparser", "six"}


def test_the_oldest_and_the_newest_torch_are_pinned() -> None:
    torches = {version for path in FILES for name, version, _ in pins(path) if name == "torch"}
    assert {"2.9.0", "2.14.1"} <= torches


def test_packages_that_torch_needs_only_for_cuda_are_left_out() -> None:
    left_out = {"triton", "cuda-bindings", "cuda-pathfinder"}
    assert not [path.name for path in FILES if left_out & {name for name, _, _ in pins(path)}]


def test_pip_installs_if_uv_cannot_and_its_exit_code_counts(tmp_path: Path) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(f"pnas-has-no-such-package==1 --hash=sha256:{'0' * 64}\n")
    done = subprocess.run(
        [sys.executable, ROOT / "requirements" / "install.py", requirements],
        env={**os.environ, "UV_OFFLINE": "1", "PIP_NO_INDEX": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    uv, pip = done.stderr.split("trying pip\n")
    assert "no-such-package" in uv
    assert "No matching distribution found for pnas-has-no-such-package==1" in pip
