"""The launcher takes the login, the proxy and the namespace from the official client's configuration."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import Configuration

from launcher.errors import UnreachableError
from launcher.kube.access import ClusterAccess
from launcher.kube.api import connect
from launcher.kube.kubeconfig import token_source

KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{name: one, cluster: {server: "https://10.0.0.5:6443"}}]
users: [{name: me, user: {token: secret}}]
contexts: [{name: here, context: {cluster: one, user: me, namespace: training}}]
current-context: here
"""


@pytest.mark.parametrize(("bypassed", "proxy"), [("10.0.0.5", None), ("elsewhere.example", "http://proxy:3128")])
def test_the_proxy_is_not_used_for_a_server_in_no_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bypassed: str, proxy: str | None
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://proxy:3128")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, bypassed)
    path = tmp_path / "config"
    path.write_text(KUBECONFIG)
    api = connect(ClusterAccess(kubeconfig=path))
    assert api.credentials.proxy == proxy
    assert api.credentials.token() == "secret"
    assert api.namespace == "training"


def test_the_line_end_of_a_token_file_is_not_part_of_the_token(tmp_path: Path) -> None:
    """`echo` writes a line end, which a header must not contain."""
    token, path = tmp_path / "token", tmp_path / "config"
    token.write_text("secret\n")
    path.write_text(KUBECONFIG.replace("{token: secret}", json.dumps({"tokenFile": str(token)})))
    assert connect(ClusterAccess(kubeconfig=path)).credentials.token() == "secret"


def exec_config(folder: Path, script: str) -> Path:
    """Write a kubeconfig whose user logs in by a plugin."""
    plugin = folder / "plugin"
    plugin.write_text(f"#!{sys.executable}\n{script}\n")
    plugin.chmod(0o755)
    command = {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin), "interactiveMode": "Never"}
    path = folder / "config"
    path.write_text(KUBECONFIG.replace("{token: secret}", json.dumps({"exec": command})))
    return path


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import sys; sys.exit('your session is over:\\nrun corp-login')", "your session is over: run corp-login"),
        ("print('{}')", "malformed response"),
    ],
)
def test_a_failing_login_plugin_is_the_reason_and_the_only_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], script: str, message: str
) -> None:
    path = exec_config(tmp_path, script)
    with pytest.raises(UnreachableError) as caught:
        connect(ClusterAccess(kubeconfig=path))
    text = str(caught.value)
    assert message in text
    assert text.startswith(f"kubeconfig {path}: ")
    assert text.endswith("; log in again, or fix it")
    assert "\n" not in text
    assert capfd.readouterr().err == ""


def test_a_login_plugin_that_fails_later_leaves_its_last_token(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    status: dict[str, Any] = {"token": "first", "expirationTimestamp": "2020-01-01T00:00:00Z"}
    answer = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}
    marker = tmp_path / "started"
    script = f"import os; os.mkdir({str(marker)!r}); print({json.dumps(answer)!r})"
    token = connect(ClusterAccess(kubeconfig=exec_config(tmp_path, script))).credentials.token
    assert marker.is_dir()
    assert token() == "first"
    assert capfd.readouterr().err == ""


def test_a_login_that_can_no_longer_be_read_raises_one_line() -> None:
    """For example a pod's token, which is read again each minute."""

    def hook(_: Configuration) -> None:
        raise FileNotFoundError(2, "No such file or directory", "/run/token")

    configuration: Any = Configuration()
    configuration.refresh_api_key_hook = hook
    with pytest.raises(UnreachableError, match=r"the login cannot be renewed: .*/run/token.*; log in again"):
        token_source(configuration)()
