"""What is taken from the official client's configuration."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import Configuration

from launcher.errors import UnreachableError
from launcher.kube.connection import connect
from launcher.kube.kubeconfig import token_source
from launcher.kube.place import Place

KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{name: one, cluster: {server: "https://10.0.0.5:6443"}}]
users: [{name: me, user: {token: secret}}]
contexts: [{name: here, context: {cluster: one, user: me, namespace: training}}]
current-context: here
"""


@pytest.mark.parametrize(("bypassed", "proxy"), [("10.0.0.5", None), ("elsewhere.example", "http://proxy:3128")])
def test_a_proxy_is_not_asked_for_what_no_proxy_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bypassed: str, proxy: str | None
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://proxy:3128")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, bypassed)
    path = tmp_path / "config"
    path.write_text(KUBECONFIG)
    api = connect(Place(kubeconfig=path))
    assert api.credentials.proxy == proxy
    assert api.credentials.token() == "secret"
    assert api.namespace == "training"


def test_the_end_of_a_token_files_line_is_no_part_of_the_token(tmp_path: Path) -> None:
    """Whoever writes one with `echo` ends its line; no header may hold that."""
    token, path = tmp_path / "token", tmp_path / "config"
    token.write_text("secret\n")
    path.write_text(KUBECONFIG.replace("{token: secret}", json.dumps({"tokenFile": str(token)})))
    assert connect(Place(kubeconfig=path)).credentials.token() == "secret"


def exec_config(folder: Path, script: str) -> Path:
    """A kubeconfig whose user logs in by a plugin."""
    plugin = folder / "plugin"
    plugin.write_text(f"#!{sys.executable}\n{script}\n")
    plugin.chmod(0o755)
    command = {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin), "interactiveMode": "Never"}
    path = folder / "config"
    path.write_text(KUBECONFIG.replace("{token: secret}", json.dumps({"exec": command})))
    return path


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("import sys; sys.exit('your session is over:\\nrun corp-login')", "your session is over: run corp-login"),
        ("print('{}')", "malformed response"),
    ],
)
def test_a_login_plugin_that_fails_is_the_reason_and_the_only_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], script: str, said: str
) -> None:
    path = exec_config(tmp_path, script)
    with pytest.raises(UnreachableError) as caught:
        connect(Place(kubeconfig=path))
    text = str(caught.value)
    assert said in text
    assert text.startswith(f"kubeconfig {path}: ")
    assert text.endswith("; log in again, or fix it")
    assert "\n" not in text
    assert capfd.readouterr().err == ""


def test_a_login_plugin_that_fails_later_leaves_its_last_token_to_the_server(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    status: dict[str, Any] = {"token": "first", "expirationTimestamp": "2020-01-01T00:00:00Z"}
    answer = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}
    asked = tmp_path / "asked"
    script = f"import os; os.mkdir({str(asked)!r}); print({json.dumps(answer)!r})"
    token = connect(Place(kubeconfig=exec_config(tmp_path, script))).credentials.token
    assert asked.is_dir()
    assert token() == "first"
    assert capfd.readouterr().err == ""


def test_a_login_that_cannot_be_read_any_more_is_no_traceback() -> None:
    """As a pod's token that is read anew each minute."""

    def hook(_: Configuration) -> None:
        raise FileNotFoundError(2, "No such file or directory", "/run/token")

    configuration: Any = Configuration()
    configuration.refresh_api_key_hook = hook
    with pytest.raises(UnreachableError, match=r"the login cannot be renewed: .*/run/token.*; log in again"):
        token_source(configuration)()
