"""The launcher behaves the same with every Kubernetes client from version 29 on, and with every way to log in."""

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.support import fake_trainer
from tests.cluster.support.background_follow import BackgroundFollow
from tests.cluster.support.login_proxy import LoginProxy
from tests.cluster.support.terminal import Terminal, job_claims
from tests.cluster.testbed.artifacts import binaries, images
from tests.cluster.testbed.cluster import Cluster


@pytest.fixture
def terminal(
    cluster: Cluster, background_follow: BackgroundFollow, namespace: str, tmp_path: Path, digits: Path
) -> Iterator[Terminal]:
    """Return a terminal; `background_follow` has loaded the fake trainer's image."""
    assert background_follow.proxy.port
    with job_claims(cluster, namespace, digits):
        yield Terminal(cluster, namespace, tmp_path, cluster.kubeconfig, {"PNAS_BACKEND": "batch"})


class TwoFileTerminal(Terminal):
    """A user whose kubeconfig is in two files: one has the user, and the other has the context with the namespace."""

    @property
    def environ(self) -> dict[str, str]:
        """Return the environment in which only the context names the namespace."""
        files = ":".join(str(self.home / name) for name in ("contexts", "users"))
        return {**{key: text for key, text in super().environ.items() if key != "PNAS_NAMESPACE"}, "KUBECONFIG": files}


def two_file_terminal(terminal: Terminal, more: dict[str, str]) -> TwoFileTerminal:
    """Return the terminal of such a user, with an old `auth-provider` login: the launcher uses a client only for it."""
    kubectl, namespace = terminal.cluster.kubectl, terminal.namespace
    kubectl("create", "serviceaccount", "user", "--namespace", namespace)
    account = f"--serviceaccount={namespace}:user"
    kubectl("create", "rolebinding", "user", "--clusterrole=admin", account, "--namespace", namespace)
    token = kubectl("create", "token", "user", "--namespace", namespace).strip()
    provider = {"name": "oidc", "config": {"id-token": token}}

    def users_file(config: Any) -> None:
        for key in ("clusters", "contexts", "current-context"):
            del config[key]
        config["users"][0]["user"] = {"auth-provider": provider}

    def contexts_file(config: Any) -> None:
        del config["users"]
        config["contexts"][0]["context"]["namespace"] = namespace

    terminal.kubeconfig_with("users", users_file)
    return TwoFileTerminal(
        terminal.cluster, namespace, terminal.home, terminal.kubeconfig_with("contexts", contexts_file), more
    )


@pytest.mark.parametrize("version", ["29.0.0", "35.0.0", "37.0.2"])
def test_a_job_is_checked_listed_followed_and_deleted_with_every_client(terminal: Terminal, version: str) -> None:
    client_path = (
        {} if version == importlib.metadata.version("kubernetes") else {"PYTHONPATH": str(binaries.client(version))}
    )
    old = two_file_terminal(terminal, {**terminal.variables, **client_path})
    printed = subprocess.run(
        [sys.executable, "-c", "import kubernetes; print(kubernetes.__version__)"],
        env=old.environ,
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout.strip() == version
    fake_trainer.start_job(terminal.cluster, terminal.namespace, "old", 500, 1000, 20)
    result = old.run("logs", "old", "-f", "--raw")
    assert result.returncode == 0, result.stderr
    assert fake_trainer.line_numbers(result.stdout) == list(range(1, 501))
    assert [job["name"] for job in json.loads(old.run("list", "--json").stdout)["items"]] == ["old"]
    checked = old.submit("--npus", "8", "--name", "new", "--dry-run", "server")
    assert (checked.returncode, checked.stdout) == (0, "job new: the cluster accepts it; nothing was started\n")
    assert old.run("delete", "old").returncode == 0


def test_an_expired_token_is_requested_again_once(terminal: Terminal) -> None:
    """The plugin's first token is invalid, like a token that has expired since the last request."""
    kubectl = terminal.cluster.kubectl
    namespace = terminal.namespace
    kubectl("create", "serviceaccount", "user", "--namespace", namespace)
    kubectl(
        "create", "rolebinding", "user", "--clusterrole=admin", f"--serviceaccount={namespace}:user", "-n", namespace
    )
    valid_token = kubectl("create", "token", "user", "--namespace", namespace).strip()
    requests = terminal.home / "asked"
    plugin = terminal.home / "plugin"
    plugin.write_text(
        f"#!{sys.executable}\n"
        "import json, pathlib\n"
        f"asked = pathlib.Path({str(requests)!r})\n"
        "count = len(asked.read_text()) if asked.exists() else 0\n"
        "asked.write_text('x' * (count + 1))\n"
        f"token = {valid_token!r} if count else 'expired'\n"
        "print(json.dumps({'apiVersion': 'client.authentication.k8s.io/v1', 'kind': 'ExecCredential',"
        " 'status': {'token': token}}))\n"
    )
    plugin.chmod(0o755)
    command = {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin), "interactiveMode": "Never"}
    kubeconfig = terminal.kubeconfig_with("exec", lambda config: config["users"][0].update(user={"exec": command}))
    fake_trainer.start_job(terminal.cluster, namespace, "token", 100, 0, 20)
    result = terminal.run("logs", "token", "-f", "--raw", "--kubeconfig", str(kubeconfig))
    assert result.returncode == 0, result.stderr
    assert fake_trainer.line_numbers(result.stdout) == list(range(1, 101))
    assert len(requests.read_text()) == 2


@pytest.mark.parametrize(("login", "code"), [("u:p%40w@", 0), ("u:wrong@", 3), ("", 3)])
def test_a_job_is_listed_and_followed_through_a_proxy_that_wants_a_password(
    terminal: Terminal, login: str, code: int
) -> None:
    fake_trainer.start_job(terminal.cluster, terminal.namespace, "far", 500, 1000, 20)
    with LoginProxy("u", "p@w") as proxy:
        address = {"proxy-url": f"http://{login}127.0.0.1:{proxy.port}"}
        config = terminal.kubeconfig_with("proxy", lambda config: config["clusters"][0]["cluster"].update(address))
        listed = terminal.run("list", "--kubeconfig", str(config), "--backend", "batch", "--json")
        followed = terminal.run("logs", "far", "-f", "--raw", "--kubeconfig", str(config))
        assert (listed.returncode, followed.returncode) == (code, code)
        assert (proxy.tunnels > 0, proxy.refusals > 0) == (code == 0, code != 0)
    if code == 0:
        assert fake_trainer.line_numbers(followed.stdout) == list(range(1, 501))
    else:
        assert "the proxy wants a user and a password" in listed.stderr
        assert "wrong" not in listed.stderr + followed.stderr


def test_a_launcher_in_a_pod_uses_its_service_account(terminal: Terminal) -> None:
    kubectl, namespace = terminal.cluster.kubectl, terminal.namespace
    kubectl("create", "serviceaccount", "inside", "--namespace", namespace)
    account = f"--serviceaccount={namespace}:inside"
    kubectl("create", "rolebinding", "inside", "--clusterrole=admin", account, "--namespace", namespace)
    # Other tests may have installed Volcano, whose jobs an admin of a namespace does not see.
    rbac, of_volcano = "rbac.authorization.k8s.io/v1", {"name": "volcano", "namespace": namespace}
    rules = [{"apiGroups": ["batch.volcano.sh"], "resources": ["jobs"], "verbs": ["get", "list"]}]
    terminal.cluster.create({"apiVersion": rbac, "kind": "Role", "metadata": of_volcano, "rules": rules})
    kubectl("create", "rolebinding", "volcano", "--role=volcano", account, "--namespace", namespace)
    fake_trainer.start_job(terminal.cluster, namespace, "spoken", 200, 100, 20)
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
    output = kubectl("logs", "inside", "--namespace", namespace)
    assert " 200 lines from 1 device, 0 missing" in output
    assert "spoken Succeeded batch" in " ".join(output.split())
    assert f"there is no job `none` in this machine or in this pod's service account, namespace {namespace}" in output
