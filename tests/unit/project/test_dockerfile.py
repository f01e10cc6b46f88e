"""docker/Dockerfile.ascend is clean, and agrees with the versions of the project and of the locked packages."""

import os
import re
import subprocess
import sysconfig
from pathlib import Path

from tests.unit.project.test_requirements import pins, project

ROOT = Path(__file__).parents[3]
DOCKERFILE = ROOT / "docker" / "Dockerfile.ascend"
TEXT = DOCKERFILE.read_text(encoding="utf-8")
VERSION: str = project()["version"]
LOCKED = {name: version for name, version, _ in pins(ROOT / "requirements" / "npu-2.9.0.txt")}


def test_hadolint_finds_nothing() -> None:
    program = Path(sysconfig.get_path("scripts")) / "hadolint"
    done = subprocess.run(
        [str(program), "--no-color", str(DOCKERFILE)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_entry_script_becomes_its_command_even_without_cann() -> None:
    entry = ["bash", str(ROOT / "docker" / "entrypoint.sh")]
    done = subprocess.run(
        [*entry, "sh", "-c", "echo $1 $PPID; exit 75", "sh", "a b"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (75, "")
    assert done.stdout == f"a b {os.getpid()}\n"


def test_its_label_is_the_packages_version() -> None:
    assert f'org.opencontainers.image.version="{VERSION}"' in TEXT


def test_the_separately_installed_torchvision_has_the_locked_version() -> None:
    (torchvision,) = re.findall(r"^ARG TORCHVISION=(.*)\+cpu$", TEXT, flags=re.MULTILINE)
    assert torchvision == LOCKED["torchvision"]


def test_torch_npu_and_torch_are_a_pair_for_both_machines() -> None:
    torches = {version for name, version, _ in pins(ROOT / "requirements" / "npu-2.9.0.txt") if name == "torch"}
    assert torches == {LOCKED["torch-npu"], f"{LOCKED['torch-npu']}+cpu"}
