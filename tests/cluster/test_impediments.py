"""Where no cluster can be, tests and `make cluster` say in one line why."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.testbed import packages
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.node import CONTROLLERS
from tests.cluster.testbed.runtime import CHECKOUT


@pytest.fixture(autouse=True)
def _possible(cluster: Cluster) -> None:
    """They need `cluster` only for what that makes sure of: that nothing else is in the way here."""
    assert cluster.inside("its programs").programs.exists()


def test_root_without_the_right_to_mount_is_told_so() -> None:
    asked = "from tests.cluster.testbed.packages import impediment; print(impediment())"
    command = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", sys.executable, "-c", asked]
    said = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    assert said == "the test bed needs the capability CAP_SYS_ADMIN: it makes namespaces and mounts\n"


def test_a_machine_with_cgroup_v2_alone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cgroup.controllers").touch()
    monkeypatch.setattr(packages, "CGROUPS", tmp_path)
    missing = ",".join(CONTROLLERS)
    assert packages.impediment() == f"the test bed needs cgroup v1, and cannot write to {tmp_path}/{{{missing}}}"


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo go1.27.1", "go1.27.1"),
        ("echo 'go: no toolchain' >&2; exit 1", "go: no toolchain"),
    ],
)
def test_another_go_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, why: str) -> None:
    go = tmp_path / "go"
    go.write_text(f"#!/bin/sh\n{script}\n")
    go.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert packages.impediment() == f"the test bed needs Go 1.26 to build Kubernetes, and this is {why}"
