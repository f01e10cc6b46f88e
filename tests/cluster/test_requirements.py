"""If a machine cannot run a cluster, tests and `make cluster` print the reason in one line."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.nodes.container_runtime import CHECKOUT
from tests.cluster.testbed.nodes.node import CONTROLLERS
from tests.cluster.testbed.requirements import missing_requirement


@pytest.fixture(autouse=True)
def _meets_requirements(cluster: Cluster) -> None:
    """Use `cluster` only to make sure that this machine meets every other requirement."""
    assert cluster.inside("Kubernetes' programs").programs.exists()


def test_root_without_the_right_to_mount_gets_the_reason() -> None:
    script = "from tests.cluster.testbed.requirements import missing_requirement; print(missing_requirement())"
    command = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", sys.executable, "-c", script]
    message = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    assert message == "the test bed needs the capability CAP_SYS_ADMIN: it makes namespaces and mounts\n"


def test_a_machine_with_only_cgroup_v2_gets_the_reason(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").touch()
    missing = ",".join(CONTROLLERS)
    reason = f"the test bed needs cgroup v1, and cannot write to {tmp_path}/{{{missing}}}"
    assert missing_requirement(cgroups=tmp_path) == reason


@pytest.mark.parametrize(
    ("script", "version"),
    [
        ("echo go1.27.1", "go1.27.1"),
        ("echo 'go: no toolchain' >&2; exit 1", "go: no toolchain"),
    ],
)
def test_a_go_of_another_version_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, version: str
) -> None:
    _program(tmp_path / "go", script)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert missing_requirement() == f"the test bed needs Go 1.26 to build Kubernetes, and this is {version}"


def test_concurrent_runs_install_missing_packages_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    busy, log, missing = tmp_path / "busy", tmp_path / "log", tmp_path / "pnas-missing"
    _program(
        tmp_path / "apt-get",
        f"mkdir {busy} || exit 100\nsleep .2\necho $1 >> {log}\n"
        f"[ $1 = update ] || {{ echo '#!/bin/sh' > {missing}; chmod +x {missing}; }}\nrmdir {busy}",
    )
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    programs = {missing.name: "its-package"}
    with ThreadPoolExecutor() as pool:
        checks = [pool.submit(missing_requirement, programs=programs) for _ in range(4)]
    assert [check.result() for check in checks] == [None] * 4
    assert log.read_text().split() == ["update", "install"]


def test_a_failed_installation_is_reported_in_the_installers_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _program(tmp_path / "apt-get", "[ $1 = update ] || { echo 'E: Unable to locate package' >&2; exit 100; }")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    message = missing_requirement(programs={"pnas-missing": "its-package"})
    assert message is not None
    assert message.startswith("apt-get install ")
    assert message.endswith("its-package: E: Unable to locate package")


def _program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
