"""Where no cluster can be, tests and `make cluster` say in one line why."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cluster.testbed import requirements
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.nodes.container_runtime import CHECKOUT
from tests.cluster.testbed.nodes.node import CONTROLLERS


@pytest.fixture(autouse=True)
def _possible(cluster: Cluster) -> None:
    """They need `cluster` only for what that makes sure of: that nothing else is in the way here."""
    assert cluster.inside("its programs").programs.exists()


def test_root_without_the_right_to_mount_is_told_so() -> None:
    asked = "from tests.cluster.testbed.requirements import impediment; print(impediment())"
    command = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", sys.executable, "-c", asked]
    said = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    assert said == "the test bed needs the capability CAP_SYS_ADMIN: it makes namespaces and mounts\n"


def test_a_machine_with_cgroup_v2_alone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cgroup.controllers").touch()
    monkeypatch.setattr(requirements, "CGROUPS", tmp_path)
    missing = ",".join(CONTROLLERS)
    assert requirements.impediment() == f"the test bed needs cgroup v1, and cannot write to {tmp_path}/{{{missing}}}"


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo go1.27.1", "go1.27.1"),
        ("echo 'go: no toolchain' >&2; exit 1", "go: no toolchain"),
    ],
)
def test_another_go_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, why: str) -> None:
    _program(tmp_path / "go", script)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert requirements.impediment() == f"the test bed needs Go 1.26 to build Kubernetes, and this is {why}"


def test_what_is_missing_is_installed_once_by_all_who_are_begun_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, log, missing = tmp_path / "busy", tmp_path / "log", tmp_path / "pnas-missing"
    _program(
        tmp_path / "apt-get",
        f"mkdir {busy} || exit 100\nsleep .2\necho $1 >> {log}\n"
        f"[ $1 = update ] || {{ echo '#!/bin/sh' > {missing}; chmod +x {missing}; }}\nrmdir {busy}",
    )
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(requirements, "PROGRAMS", {missing.name: "its-package"})
    with ThreadPoolExecutor() as pool:
        found = [pool.submit(requirements.impediment) for _ in range(4)]
    assert [one.result() for one in found] == [None] * 4
    assert log.read_text().split() == ["update", "install"]


def test_a_package_that_cannot_be_installed_is_told_in_the_installers_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _program(tmp_path / "apt-get", "[ $1 = update ] || { echo 'E: Unable to locate package' >&2; exit 100; }")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(requirements, "PROGRAMS", {"pnas-missing": "its-package"})
    said = requirements.impediment()
    assert said is not None
    assert said.startswith("apt-get install ")
    assert said.endswith("its-package: E: Unable to locate package")


def _program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
