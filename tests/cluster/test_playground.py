"""`make cluster` starts a working cluster and removes it; tests on a named cluster report why they did not run."""

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
# One test of only the API, and one of the inside of a node.
TESTS = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/cluster/test_testbed.py", "-k"]
API_TEST, NODE_TEST = "restricted_namespaces", "unhealthy"


def _run(command: Sequence[str], **environ: str) -> "subprocess.CompletedProcess[str]":
    inherited = {name: value for name, value in os.environ.items() if name not in {"CI", KUBECONFIG}}
    return subprocess.run(
        command, cwd=CHECKOUT, env={**inherited, **environ}, capture_output=True, text=True, check=False
    )


def _folder_of(text: str) -> Path:
    (kubeconfig,) = re.findall(r"^export KUBECONFIG=(.+)$", text, flags=re.MULTILINE)
    return Path(kubeconfig).parent


def test_make_cluster_starts_a_cluster_on_which_the_suggested_commands_work(cluster: Cluster, tmp_path: Path) -> None:
    """The test needs `cluster` only to make sure that this machine can run one."""
    folder = str(tmp_path / "playground")
    up = _run([*TESTBED, "up", folder])
    try:
        assert up.returncode == 0, up.stderr
        assert _folder_of(up.stdout) != cluster.kubeconfig.parent
        second = _run([*TESTBED, "up", folder])
        assert (second.returncode, second.stdout) == (0, f"# a cluster runs already\n{up.stdout}")
        commands = _run(["bash", "-euc", up.stdout], HOME=str(tmp_path))
        assert commands.returncode == 0, commands.stderr
        assert "node2   Ready" in commands.stdout
        assert "0 missing" in commands.stdout
        assert re.search(r"^pnas-performance-\S+ +Succeeded +batch", commands.stdout, flags=re.MULTILINE), (
            commands.stdout
        )
    finally:
        down = _run([*TESTBED, "down", folder])
    assert (down.returncode, down.stdout) == (0, "# the cluster is gone\n")
    assert not _folder_of(up.stdout).exists()
    assert _run([*TESTBED, "down", folder]).stdout == "# no cluster runs\n"


def test_ctrl_c_during_the_start_leaves_nothing(cluster: Cluster, tmp_path: Path) -> None:
    assert cluster.program.exists()
    folder = tmp_path / "playground"
    with subprocess.Popen([*TESTBED, "up", str(folder)], cwd=CHECKOUT, stderr=subprocess.PIPE, text=True) as up:
        while not (runs := [run for run in RUNS.iterdir() if _is_owner(run, up.pid)]):
            assert up.poll() is None
            time.sleep(0.05)
        up.send_signal(signal.SIGINT)
        _, message = up.communicate()
    assert up.returncode == 130
    assert message.endswith("interrupted; nothing is left\n")
    assert [run for run in runs if run.exists()] == []
    assert [path.name for path in folder.iterdir()] == ["lock"]


def _is_owner(run: Path, parent: int) -> bool:
    """Return whether a child of `parent` owns this run and has started its first processes."""
    owner = run / "owner"
    status = Path(f"/proc/{owner.read_text()}/status") if owner.exists() else None
    if status is None or not status.exists() or not (run / "logs" / "etcd.log").exists():
        return False
    return f"PPid:\t{parent}\n" in status.read_text()


def test_a_named_cluster_runs_all_tests_but_the_ones_that_need_the_inside_of_nodes(cluster: Cluster) -> None:
    command = [*TESTS, f"{API_TEST} or {NODE_TEST}"]
    environ = {KUBECONFIG: str(cluster.kubeconfig)}
    result = _run(command, **environ)
    assert "1 passed, 1 skipped" in result.stdout, result.stdout
    assert "is not the test bed, and this needs the inside of its nodes" in result.stdout
    result = _run(command, **environ, CI="true")
    assert "1 failed, 1 passed" in result.stdout, result.stdout


def test_without_root_tests_are_reported_as_not_run_and_fail_under_ci(cluster: Cluster) -> None:
    assert cluster.program.exists()
    command = ["unshare", "--user", "--map-user=65532", *TESTS, NODE_TEST]
    result = _run(command)
    assert "1 skipped" in result.stdout, result.stdout
    assert "the test bed needs root" in result.stdout
    assert "1 error" in _run(command, CI="true").stdout
