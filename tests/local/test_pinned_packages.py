"""The index has every pinned package, with a pinned hash, for each machine that an image or a checkout runs on.

uv asks the index for both machines and downloads no package, so that this machine's own kind does not matter.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.project.test_requirements import FILES, X86_64

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def locked(requirements: Path, machine: str, folder: Path) -> list[dict[str, Any]]:
    """Return the packages, each with the wheels that the index has for a machine."""
    output = folder / "pylock.toml"
    command = [str(Path(sys.executable).with_name("uv")), "pip", "compile", "--quiet", "--no-cache", "--no-deps"]
    command += ["--only-binary", ":all:", "--python-version", "3.11", "--python-platform", f"{machine}-manylinux_2_28"]
    done = subprocess.run(
        [*command, "--format", "pylock.toml", "--output-file", str(output), str(requirements)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    packages: list[dict[str, Any]] = tomllib.loads(output.read_text())["packages"]
    return packages


def wheels_without_a_pinned_hash(requirements: Path, machine: str, folder: Path) -> list[str]:
    """Return the packages of which pip would accept no wheel of the index."""
    text = requirements.read_text()
    return [
        package["name"]
        for package in locked(requirements, machine, folder)
        if not any(wheel["hashes"]["sha256"] in text for wheel in package.get("wheels", ()))
    ]


@pytest.mark.parametrize("machine", ["aarch64", "x86_64"])
@pytest.mark.parametrize("path", sorted(set(FILES) - {X86_64}), ids=lambda path: path.name)
def test_the_index_has_a_pinned_wheel_of_every_package(path: Path, machine: str, tmp_path: Path) -> None:
    assert wheels_without_a_pinned_hash(path, machine, tmp_path) == []


def test_a_wheel_with_another_hash_and_a_missing_version_would_be_found(tmp_path: Path) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(f"numpy==1.26.4 \\\n    --hash=sha256:{'0' * 64}\n")
    assert wheels_without_a_pinned_hash(requirements, "aarch64", tmp_path) == ["numpy"]
    requirements.write_text("numpy==1.26.999\n")
    with pytest.raises(AssertionError, match=r"no version of numpy==1\.26\.999"):
        locked(requirements, "aarch64", tmp_path)
