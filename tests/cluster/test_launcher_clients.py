"""Every Kubernetes client from 29 to the newest, and every way of logging in, gives the same launcher."""

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.support import fake_trainer
from tests.cluster.support.background_follow import Cut
from tests.cluster.support.terminal import Terminal, output_of
from tests.cluster.testbed.artifacts import binaries, images
from tests.cluster.testbed.cluster import Cluster


@pytest.fixture
def terminal(cluster: Cluster, cut: Cut, namespace: str, tmp_path: Path, digits: Path) -> Iterator[Terminal]:
    """The nodes have the image since `cut` was begun."""
    assert cut.cutter.port
    with output_of(cluster, namespace, digits):
        yield Terminal(cluster, namespace, tmp_path, cluster.kubeconfig, {"PNAS_BACKEND": "batch"})


class Merged(Terminal):
    """Somebody whose kubeconfig is in two files, of which the one has the user, and the other says the namespace."""

    @property
    def environ(self) -> dict[str, str]:
        """Nothing but the context names the namespace."""
        files = ":".join(str(self.home / name) for name in ("places", "users"))
        return {**{key: text for key, text in super().environ.items() if key != "PNAS_NAMESPACE"}, "KUBECONFIG": files}


def merged(terminal: Terminal, more: dict[str, str]) -> Merged:
    """Such a one, who logs in by a plugin that gives a token."""
    kubectl, namespace = terminal.cluster.kubectl, terminal.namespace
    kubectl("create", "serviceaccount", "user", "--namespace", namespace)
    account = f"--serviceaccount={namespace}:user"
    kubectl("create", "rolebinding", "user", "--clusterrole=admin", account, "--namespace", namespace)
    token = kubectl("create", "token", "user", "--namespace", namespace).strip()
    credential = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": token}}
    command = {
        "apiVersion": credential["apiVersion"],
        "command": "echo",
        "args": [json.dumps(credential)],
        "interactiveMode": "Never",
    }

    def of_users(config: Any) -> None:
        for key in ("clusters", "contexts", "current-context"):
            del config[key]
        config["users"][0]["user"] = {"exec": command}

    def of_places(config: Any) -> None:
        del config["users"]
        config["contexts"][0]["context"]["namespace"] = namespace

    terminal.changed("users", of_users)
    return Merged(terminal.cluster, namespace, terminal.home, terminal.changed("places", of_places), more)


@pytest.mark.parametrize("version", ["29.0.0", "35.0.0", "37.0.2"])
def test_a_job_is_checked_listed_followed_and_deleted_with_every_client(terminal: Terminal, version: str) -> None:
    found = {} if version == importlib.metadata.version("kubernetes") else {"PYTHONPATH": str(binaries.client(version))}
    old = merged(terminal, {**terminal.more, **found})
    used = subprocess.run(
        [sys.executable, "-c", "import kubernetes; print(kubernetes.__version__)"],
        env=old.environ,
        capture_output=True,
        text=True,
        check=True,
    )
    assert used.stdout.strip() == version
    fake_trainer.create(terminal.cluster, terminal.namespace, "old", 500, 1000, 20)
    done = old.run("logs", "old", "-f", "--raw")
    assert done.returncode == 0, done.stderr
    assert fake_trainer.numbers(done.stdout) == list(range(1, 501))
    assert [job["name"] for job in json.loads(old.run("list", "--json").stdout)["items"]] == ["old"]
    checked = old.submit("--npus", "8", "--name", "new", "--dry-run", "server")
    assert (checked.returncode, checked.stdout) == (0, "job new: the cluster accepts it; nothing was started\n")
    assert old.run("delete", "old").returncode == 0


def test_a_token_that_has_expired_is_asked_for_anew_once(terminal: Terminal) -> None:
    """The plugin's first token is no good, as one is that expired while nobody asked."""
    kubectl = terminal.cluster.kubectl
    namespace = terminal.namespace
    kubectl("create", "serviceaccount", "user", "--namespace", namespace)
    kubectl(
        "create", "rolebinding", "user", "--clusterrole=admin", f"--serviceaccount={namespace}:user", "-n", namespace
    )
    good = kubectl("create", "token", "user", "--namespace", namespace).strip()
    asked = terminal.home / "asked"
    plugin = terminal.home / "plugin"
    plugin.write_text(
        f"#!{sys.executable}\n"
        "import json, pathlib\n"
        f"asked = pathlib.Path({str(asked)!r})\n"
        "count = len(asked.read_text()) if asked.exists() else 0\n"
        "asked.write_text('x' * (count + 1))\n"
        f"token = {good!r} if count else 'expired'\n"
        "print(json.dumps({'apiVersion': 'client.authentication.k8s.io/v1', 'kind': 'ExecCredential',"
        " 'status': {'token': token}}))\n"
    )
    plugin.chmod(0o755)
    command = {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin), "interactiveMode": "Never"}
    through = terminal.changed("exec", lambda config: config["users"][0].update(user={"exec": command}))
    fake_trainer.create(terminal.cluster, namespace, "token", 100, 0, 20)
    done = terminal.run("logs", "token", "-f", "--raw", "--kubeconfig", str(through))
    assert done.returncode == 0, done.stderr
    assert fake_trainer.numbers(done.stdout) == list(range(1, 101))
    assert len(asked.read_text()) == 2


def test_a_launcher_in_a_pod_is_who_its_service_account_is(terminal: Terminal) -> None:
    kubectl, namespace = terminal.cluster.kubectl, terminal.namespace
    kubectl("create", "serviceaccount", "inside", "--namespace", namespace)
    account = f"--serviceaccount={namespace}:inside"
    kubectl("create", "rolebinding", "inside", "--clusterrole=admin", account, "--namespace", namespace)
    fake_trainer.create(terminal.cluster, namespace, "spoken", 200, 100, 20)
    program = "python -m launcher"
    container = {
        "name": "launcher",
        "image": images.TRAINER,
        "imagePullPolicy": "Never",
        "command": ["sh", "-euc", f"{program} logs spoken -f; {program} list; {program} logs none"],
        "env": [{"name": "HOME", "value": "/home/pnas"}],
        "volumeMounts": [{"name": "home", "mountPath": "/home/pnas"}],
    }
    spec = {
        "serviceAccountName": "inside",
        "restartPolicy": "Never",
        "containers": [container],
        "volumes": [{"name": "home", "emptyDir": {}}],
    }
    metadata = {"name": "inside", "namespace": namespace}
    terminal.cluster.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    kubectl("wait", "pod/inside", "--namespace", namespace, "--for=jsonpath={.status.phase}=Failed", "--timeout=300s")
    said = kubectl("logs", "inside", "--namespace", namespace)
    assert " 200 lines from 1 device, 0 missing" in said
    assert "spoken Succeeded batch" in " ".join(said.split())
    assert f"there is no job `none` in this machine or in this pod's service account, namespace {namespace}" in said
