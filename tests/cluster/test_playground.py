"""`make cluster` gives a person a cluster that works and goes; and tests say why they were not run on another's."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.testbed.cluster import KUBECONFIG, RUNS, Cluster
from tests.cluster.testbed.nodes.container_runtime import CHECKOUT

TESTBED = [sys.executable, "-m", "tests.cluster.testbed"]
# One test of the API alone, and one of the inside of a node.
TESTS = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/cluster/test_testbed.py", "-k"]
OUTSIDE, INSIDE = "restricted_namespaces", "unhealthy"


def _run(command: Sequence[str], **environ: str) -> "subprocess.CompletedProcess[str]":
    known = {name: value for name, value in os.environ.items() if name not in {"CI", KUBECONFIG}}
    return subprocess.run(command, cwd=CHECKOUT, env={**known, **environ}, capture_output=True, text=True, check=False)


def _folder_of(text: str) -> Path:
    (kubeconfig,) = re.findall(r"^export KUBECONFIG=(.+)$", text, flags=re.MULTILINE)
    return Path(kubeconfig).parent


def test_a_person_gets_a_cluster_on_which_the_commands_work_that_they_are_told_to_try(
    cluster: Cluster, tmp_path: Path
) -> None:
    """It needs `cluster` only for what that makes sure of: that there can be one here."""
    folder = str(tmp_path / "playground")
    up = _run([*TESTBED, "up", folder])
    try:
        assert up.returncode == 0, up.stderr
        assert _folder_of(up.stdout) != cluster.kubeconfig.parent
        again = _run([*TESTBED, "up", folder])
        assert (again.returncode, again.stdout) == (0, f"# one runs already\n{up.stdout}")
        tried = _run(["bash", "-euc", up.stdout], HOME=str(tmp_path))
        assert tried.returncode == 0, tried.stderr
        assert "node2   Ready" in tried.stdout
        assert "0 missing" in tried.stdout
        assert re.search(r"^pnas-performance-\S+ +Succeeded +batch", tried.stdout, flags=re.MULTILINE), tried.stdout
    finally:
        down = _run([*TESTBED, "down", folder])
    assert (down.returncode, down.stdout) == (0, "# the cluster is gone\n")
    assert not _folder_of(up.stdout).exists()
    assert _run([*TESTBED, "down", folder]).stdout == "# no cluster runs\n"


def test_ctrl_c_during_the_start_leaves_nothing(cluster: Cluster, tmp_path: Path) -> None:
    assert cluster.program.exists()
    folder = tmp_path / "playground"
    with subprocess.Popen([*TESTBED, "up", str(folder)], cwd=CHECKOUT, stderr=subprocess.PIPE, text=True) as up:
        while not (made := [run for run in RUNS.iterdir() if _holder(run, up.pid)]):
            assert up.poll() is None
            time.sleep(0.05)
        up.send_signal(signal.SIGINT)
        _, complained = up.communicate()
    assert up.returncode == 130
    assert complained.endswith("interrupted; nothing is left\n")
    assert [run for run in made if run.exists()] == []
    assert [path.name for path in folder.iterdir()] == ["lock"]


def _holder(run: Path, parent: int) -> bool:
    """Whether a process that `parent` has started holds this run, and has begun to start what runs in it."""
    owner = run / "owner"
    status = Path(f"/proc/{owner.read_text()}/status") if owner.exists() else None
    if status is None or not status.exists() or not (run / "logs" / "etcd.log").exists():
        return False
    return f"PPid:\t{parent}\n" in status.read_text()


def test_tests_run_on_a_cluster_that_is_named_but_for_those_of_the_inside_of_nodes(cluster: Cluster) -> None:
    command = [*TESTS, f"{OUTSIDE} or {INSIDE}"]
    named = {KUBECONFIG: str(cluster.kubeconfig)}
    ran = _run(command, **named)
    assert "1 passed, 1 skipped" in ran.stdout, ran.stdout
    assert "is not the test bed, and this needs the inside of its nodes" in ran.stdout
    ran = _run(command, **named, CI="true")
    assert "1 failed, 1 passed" in ran.stdout, ran.stdout


def test_without_root_tests_are_reported_as_not_run_and_fail_under_ci(cluster: Cluster) -> None:
    assert cluster.program.exists()
    command = ["unshare", "--user", "--map-user=65532", *TESTS, INSIDE]
    ran = _run(command)
    assert "1 skipped" in ran.stdout, ran.stdout
    assert "the test bed needs root" in ran.stdout
    assert "1 error" in _run(command, CI="true").stdout
