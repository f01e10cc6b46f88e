"""Errors that the reader of a log can meet: a node that does not answer, a login that expires, missing rights."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cluster.support import fake_trainer
from tests.cluster.support.cutting_proxy import CuttingProxy
from tests.cluster.support.terminal import Terminal, port_of
from tests.cluster.support.waiting import until
from tests.cluster.test_log_following import output_until, rest_of
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.volcano.install import Volcano

pytestmark = pytest.mark.timeout(600)

# An API server caches a valid token for about this time.
TOKEN_CACHE_S = 11


@pytest.fixture
def terminal(cluster: Cluster, namespace: str, tmp_path: Path) -> Terminal:
    fake_trainer.load_image(cluster, tmp_path)
    return Terminal(cluster, namespace, tmp_path, cluster.kubeconfig, {"PNAS_BACKEND": "batch"})


@contextmanager
def stopped_kubelet(cluster: Cluster, node: str) -> Iterator[None]:
    """Stop the node's kubelet while the context lasts, so that it does not answer."""
    folder = cluster.folder / node
    kubelets = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if (words := _words(path))[:1] and words[0].endswith("kubelet") and any(str(folder) in word for word in words)
    ]
    (kubelet,) = kubelets
    os.kill(kubelet, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(kubelet, signal.SIGCONT)


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split("\0")
    except OSError:
        return []  # the process has just ended


def test_a_node_that_does_not_answer_does_not_block_the_log(terminal: Terminal) -> None:
    fake_trainer.start_job(terminal.cluster, terminal.namespace, "held", 100_000, 100, 20, node="node2")
    until(lambda: "#50]" in terminal.run("logs", "held", "--raw").stdout)
    with stopped_kubelet(terminal.cluster, "node2"):
        result = terminal.run("logs", "held", "--tail", "5", timeout_s=180)
    (pod,) = terminal.pods("held")
    assert result.returncode == 0
    name = pod["metadata"]["name"]
    assert f"pod {name}: lines may be lost: its node does not give the rest of its log" in result.stderr


def test_a_login_that_expires_while_a_job_is_followed_is_renewed(terminal: Terminal) -> None:
    kubectl, namespace, token = terminal.cluster.kubectl, terminal.namespace, terminal.home / "token"

    def log_in() -> None:
        kubectl("create", "serviceaccount", "user", "--namespace", namespace)
        token.write_text(kubectl("create", "token", "user", "--namespace", namespace).strip())

    account = f"--serviceaccount={namespace}:user"
    kubectl("create", "rolebinding", "user", "--clusterrole=admin", account, "--namespace", namespace)
    log_in()
    plugin = terminal.home / "plugin"
    credential = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential"}
    plugin.write_text(
        f"#!{sys.executable}\n"
        "import json, pathlib\n"
        f"token = pathlib.Path({str(token)!r}).read_text()\n"
        f"print(json.dumps({{**{credential!r}, 'status': {{'token': token}}}}))\n"
    )
    plugin.chmod(0o755)
    command = {"apiVersion": credential["apiVersion"], "command": str(plugin), "interactiveMode": "Never"}
    fake_trainer.start_job(terminal.cluster, namespace, "long", 2_500, 100, 20)
    with CuttingProxy(port_of(terminal.cluster), every_s=600, silence_s=0, seed=0) as proxy:
        server = {"server": f"https://127.0.0.1:{proxy.port}"}

        def as_user(config: dict[str, list[dict[str, dict[str, object]]]]) -> None:
            config["clusters"][0]["cluster"].update(server)
            config["users"][0].update(user={"exec": command})

        config = str(terminal.kubeconfig_with("user", as_user))
        with terminal.start("logs", "long", "-f", "--raw", "--kubeconfig", config) as follower:
            output = output_until(follower, "#100]")
            kubectl("delete", "serviceaccount", "user", "--namespace", namespace)
            log_in()
            time.sleep(TOKEN_CACHE_S)
            with proxy.unavailable():
                pass
            output += rest_of(follower)
    assert follower.returncode == 0, output
    assert fake_trainer.line_numbers(output) == list(range(1, 2_501))


def test_a_user_with_rights_on_one_job_kind_and_no_events_sees_all_the_rest(
    terminal: Terminal, volcano: Volcano
) -> None:
    assert volcano.labels, "the cluster has a second job kind, which is hidden"
    terminal = replace(terminal, variables={})
    kubectl, namespace = terminal.cluster.kubectl, terminal.namespace
    fake_trainer.start_job(terminal.cluster, namespace, "seen", 100, 0, 20)
    kubectl("create", "serviceaccount", "reader", "--namespace", namespace)
    account = f"--serviceaccount={namespace}:reader"
    kinds = "--resource=jobs.batch,pods,pods/log"
    kubectl("create", "role", "reader", "--verb=get,list,watch", kinds, "--namespace", namespace)
    kubectl("create", "rolebinding", "reader", "--role=reader", account, "--namespace", namespace)
    token = kubectl("create", "token", "reader", "--namespace", namespace).strip()
    reader = str(terminal.kubeconfig_with("reader", lambda config: config["users"][0].update(user={"token": token})))
    assert terminal.run("logs", "seen", "-f", "--kubeconfig", reader).returncode == 0
    status = terminal.run("status", "seen", "--kubeconfig", reader)
    assert status.returncode == 0, status.stderr
    assert "phase    Succeeded" in status.stdout
    assert "hidden from you: " in status.stdout
    assert "you have no right to list events" in status.stdout
    listed = terminal.run("list", "--json", "--kubeconfig", reader)
    assert [job["name"] for job in json.loads(listed.stdout)["items"]] == ["seen"]
    assert "warning: not all of the cluster's jobs are shown: " in listed.stderr
    assert "you have no right to list jobs.batch.volcano.sh" in listed.stderr
    unknown_job = terminal.run("status", "unseen", "--kubeconfig", reader)
    assert (unknown_job.returncode, len(unknown_job.stderr.splitlines())) == (3, 1), unknown_job.stderr
    assert "you have no right to get jobs.batch.volcano.sh" in unknown_job.stderr
