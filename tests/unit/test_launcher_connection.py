"""What is taken from the official client's configuration."""

from pathlib import Path

import pytest

from launcher.kube.connection import connect
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
