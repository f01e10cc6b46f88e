"""docker/Dockerfile.ascend is clean, and agrees with the versions of the project and of the locked packages."""

import os
import re
import subprocess
import sysconfig
from pathlib import Path

import pytest

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
    torches = {
        version
        for device in ("npu", "torch")
        for name, version, _ in pins(ROOT / "requirements" / f"{device}-2.9.0.txt")
        if name == "torch"
    }
    assert torches == {LOCKED["torch-npu"], f"{LOCKED['torch-npu']}+cpu"}


def run_step(stage: str, number: int, folder: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run one RUN step of a stage by a shell, with stand-ins for pip and uname."""
    body = re.split(r"^FROM .*$", TEXT, flags=re.MULTILINE)[STAGES.index(stage) + 1]
    steps = re.findall(r"^RUN ((?:.*\\\n)*.*)$", re.sub(r"^#.*\n", "", body, flags=re.MULTILINE), flags=re.MULTILINE)
    script = re.sub(r"--mount=\S+", "", steps[number].replace("\\\n", " ")).replace("/opt/pnas/bin/pip", "pip")
    for name, answer in (("pip", f'echo "$@" >> {folder}/asked'), ("uname", f"echo {variables.get('MACHINE')}")):
        (folder / name).write_text(f"#!/bin/sh\n{answer}\n")
        (folder / name).chmod(0o755)
    environ = {"PATH": f"{folder}:{os.environ['PATH']}", **variables}
    return subprocess.run(["sh", "-c", script], env=environ, capture_output=True, text=True, check=False)


STAGES = re.findall(r"^FROM \S+ AS (\w+)$", TEXT, flags=re.MULTILINE)
INDEX = "https://index.example/cpu"
FROM_INDEX = f"install --no-deps --only-binary :all: --index-url {INDEX}"


def test_every_stage_has_a_name_to_build_it_by() -> None:
    assert STAGES == ["requirements", "apex", "torch", "packages", "build", "image"]
    assert TEXT.count("\nFROM ") == len(STAGES)
    page = (ROOT / "docs" / "image.md").read_text(encoding="utf-8")
    assert [stage for stage in STAGES if f"`{stage}`" not in page] == []


@pytest.mark.parametrize(
    ("machine", "index", "asked"),
    [
        (
            *("x86_64", INDEX),
            [f"{FROM_INDEX} --require-hashes --requirement /tmp/torch.txt", f"{FROM_INDEX} torchvision==0.24.0+cpu"],
        ),
        (
            *("x86_64", ""),
            [
                "install --no-deps --only-binary :all: --require-hashes --requirement /tmp/torch.txt",
                "install --no-deps --only-binary :all: torchvision==0.24.0+cpu",
            ],
        ),
        ("aarch64", INDEX, []),
    ],
)
def test_each_package_is_asked_of_the_index_that_has_it(
    tmp_path: Path, machine: str, index: str, asked: list[str]
) -> None:
    settings = {"TORCH_INDEX": index, "TORCHVISION": "0.24.0+cpu", "MACHINE": machine}
    for stage, number in (("torch", 2), ("packages", 0)):
        assert run_step(stage, number, tmp_path, **settings).returncode == 0
    others = "install --no-deps --only-binary :all: --require-hashes --requirement /tmp/requirements.txt"
    assert (tmp_path / "asked").read_text().splitlines() == [*asked, others]
    only_there = pins(ROOT / "requirements" / "torch-2.9.0.txt")
    for device in ("npu", "cpu"):
        locked = pins(ROOT / "requirements" / f"{device}-2.9.0.txt")
        assert not {version for _, version, _ in locked} & {version for _, version, _ in only_there}


def test_a_build_without_buildkit_ends_at_once_in_one_line(tmp_path: Path) -> None:
    done = run_step("torch", 0, tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "error: this image needs BuildKit: set DOCKER_BUILDKIT=1" in done.stderr
    assert run_step("torch", 0, tmp_path, TARGETARCH="arm64").returncode == 0
