"""A kubeconfig means what it means to kubectl; each fault is one line; no login leaves without TLS."""

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import RequestError, UnreachableError
from launcher.kube.access import ClusterAccess, Headers
from launcher.kube.api import connect
from launcher.kube.kubeconfig import ConfiguredCluster, find_cluster
from tests.unit.podlogs.test_transport import certificate

HTTPS = "https://10.0.0.5:6443"
TOKEN = {"token": "secret"}


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "KUBECONFIG"):
        monkeypatch.delenv(name, raising=False)


def config(
    cluster: Any = None, user: Any = None, *, names: tuple[str, str] = ("one", "me"), **context: Any
) -> dict[str, Any]:
    """Return a kubeconfig with one context, `here`, and all that it names unless `names` say otherwise."""
    return {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": names[0], "user": names[1], **context}}],
        "clusters": [{"name": "one", "cluster": {"server": HTTPS} if cluster is None else cluster}],
        "users": [{"name": "me", "user": TOKEN if user is None else user}],
    }


def found(folder: Path, content: Any, context: str | None = None) -> ConfiguredCluster:
    """Return the cluster of a kubeconfig in the folder."""
    path = folder / "config"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return find_cluster(ClusterAccess(kubeconfig=path, context=context))


def login(folder: Path, user: Any, server: str = HTTPS) -> Headers:
    return found(folder, config({"server": server}, user)).credentials.login()


@pytest.mark.parametrize(
    ("user", "headers"),
    [
        ({"token": "secret\n"}, [("Authorization", "Bearer secret")]),
        ({"tokenFile": "token"}, [("Authorization", "Bearer from-file")]),
        ({"tokenFile": "token", "token": "old"}, [("Authorization", "Bearer from-file")]),
        ({"tokenFile": "gone", "token": "old"}, [("Authorization", "Bearer old")]),
        ({"username": "mé", "password": "p:w"}, [("Authorization", "Basic bcOpOnA6dw==")]),
        ({"auth-provider": {"name": "gcp", "config": {"access-token": "x"}}}, [("Authorization", "Bearer x")]),
        ({"auth-provider": {"name": "oidc", "config": {"id-token": "a.e30.c"}}}, [("Authorization", "Bearer a.e30.c")]),
        ({"auth-provider": None, "exec": {}, "token": "t"}, [("Authorization", "Bearer t")]),
        (
            {"token": "t", "as": "you", "as-uid": "7", "as-groups": ["a", "b"]},
            [("Authorization", "Bearer t"), ("Impersonate-User", "you"), ("Impersonate-Uid", "7"),
             ("Impersonate-Group", "a"), ("Impersonate-Group", "b")],
        ),
        ({}, []),
    ],
)  # fmt: skip
def test_a_user_logs_in_as_the_kubeconfig_says_and_only_over_tls(
    tmp_path: Path, user: dict[str, Any], headers: Headers
) -> None:
    # `echo` writes a line end, which a header must not contain.
    (tmp_path / "token").write_text("from-file\n")
    assert login(tmp_path, user) == headers
    assert login(tmp_path, user, "http://10.0.0.5:6443") == []


@pytest.mark.parametrize("text", ["0123", "1e3", "0x1F", "2024-11-01", "1:30", "1_000"])
def test_a_token_and_a_namespace_are_the_texts_that_they_are(tmp_path: Path, text: str) -> None:
    written = json.dumps(config(user={"token": "TEXT"}, namespace="TEXT")).replace('"TEXT"', text)
    cluster = found(tmp_path, written)
    assert cluster.credentials.login() == [("Authorization", f"Bearer {text}")]
    assert cluster.namespace == text


def test_a_plugins_certificate_and_token_are_used(tmp_path: Path) -> None:
    path, _ = certificate(tmp_path, "ours", host="x")
    key = path.with_suffix(".pem").read_text()
    status = {"token": "t", "clientCertificateData": path.read_text(), "clientKeyData": key}
    version = "client.authentication.k8s.io/v1"
    answer = json.dumps({"apiVersion": version, "kind": "ExecCredential", "status": status})
    user = {"exec": {"apiVersion": version, "command": "/bin/echo", "args": [answer], "env": None}}
    credentials = found(tmp_path, config(user=user)).credentials
    assert credentials.login() == [("Authorization", "Bearer t")]
    assert Path(str(credentials.client_cert)).read_text() == path.read_text()
    assert Path(str(credentials.client_key)).stat().st_mode & 0o077 == 0


def test_of_several_files_the_first_that_names_a_thing_counts_and_paths_begin_at_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    path, _ = certificate(tmp_path / "b", "ours", host="x")
    (tmp_path / "b" / "token").write_text("b")
    both = config({"server": HTTPS, "certificate-authority": path.name}, {"tokenFile": "token"})
    first = {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "one", "user": "me", "namespace": "n"}}],
    }
    (tmp_path / "a" / "config").write_text(json.dumps(first))
    (tmp_path / "b" / "config").write_text(json.dumps({**both, "current-context": "other"}))
    monkeypatch.setenv("KUBECONFIG", f":{tmp_path}/gone:{tmp_path}/a/config:{tmp_path}/b/config:")
    cluster = find_cluster(ClusterAccess())
    assert cluster.namespace == "n"
    assert cluster.credentials.ca_file == str(path)
    assert cluster.credentials.login() == [("Authorization", "Bearer b")]


def test_a_proxy_of_the_environment_is_used_unless_no_proxy_names_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "proxy:3128")
    assert found(tmp_path, config()).credentials.proxy == "http://proxy:3128"
    monkeypatch.setenv("NO_PROXY", "10.0.0.0/8")
    assert found(tmp_path, config()).credentials.proxy is None
    own = config({"server": HTTPS, "proxy-url": "socks5://p:1"})
    assert found(tmp_path, own).credentials.proxy == "socks5://p:1"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (config({"server": "10.0.0.5:6443"}), "server 10.0.0.5:6443 does not .*; write it like https://10.0.0.5:6443"),
        *((config({"server": server}), "has no server") for server in ("", " ", None)),
        (config({}), "has no server"),
        *(
            (config({"server": server}), "server is no address")
            for server in ("ftp://h", "https://", "https://u:hidden@h", "https://h:x", "https://[::1:b", "https://a b")
        ),
        *(
            (config({"server": server}), "server is no address")
            for server in ("https://a..b", "https://é.x")
        ),
        *(
            (config({"server": HTTPS, "tls-server-name": name}), "tls-server-name is not the name of a host")
            for name in ("a" * 64, "../x", "a\0b", "...", "é")
        ),
        *(
            (config(user={"token": "t", "as": "me", **wrong}), "can hold only printable ASCII")
            for wrong in ({"as": "Zoë"}, {"as-uid": "a\r\nX: y"}, {"as-groups": ["李"]})
        ),
        (config({"server": HTTPS, "certificate-authority-data": "é"}), "certificate-authority-data is not base64"),
        (config(names=("two", "me")), "there is no cluster `two`.*the file has one"),
        (config(names=("", "me")), "names no cluster"),
        (config(names=("one", "you")), "there is no user `you`.*the file has me"),
        ({**config(), "current-context": ""}, "no context is chosen.*the file has here"),
        ({**config(), "current-context": "gone"}, "its current context `gone` does not exist"),
        ({**config(), "contexts": None}, "the file has none"),
        ({**config(), "contexts": "x"}, "contexts must be a list of entries with a name"),
        ({**config(), "users": [{"user": {}}]}, "users must be a list of entries with a name"),
        ({**config(), "users": [{"name": "me", "user": "x"}]}, "`me` is not a mapping"),
        ("", "no context is chosen"),
        ("{{{", "cannot be read: line 1: not valid YAML"),
        ("[" * 5000, "cannot be read: "),
        ("a: 1\na: 2", "line 2: `a` is given twice"),
        ("token: hidden: x", "cannot be read: line 1: "),
        ("- a", "not a mapping"),
        ("a: \x07", "cannot be read"),
        (config({"server": HTTPS, "certificate-authority": "gone"}), "certificate-authority .*/gone: no such file"),
        (config({"server": HTTPS, "certificate-authority-data": "%"}), "certificate-authority-data is not base64"),
        (config({"server": HTTPS, "certificate-authority-data": "aGVsbG8="}), "authority holds no certificate"),
        (config(user={"client-certificate": "gone", "client-key": "gone"}), "client-certificate .*/gone: no such file"),
        (config(user={"client-certificate": "config"}), "client-certificate and client-key cannot be used"),
        (config(user={"client-key": "config"}), "client-key has no client-certificate"),
        (config(user={"exec": {"command": "x"}}), "exec needs a command, and an apiVersion"),
        (config(user={"auth-provider": {"name": "azure"}}), "gives no token; use a login plugin"),
        (config(user={"token": "t", "as-groups": ["a"]}), "only as, as-uid and as-groups"),
        (config({"server": HTTPS, "proxy-url": "nonsense://x"}), "proxy-url of the kubeconfig: a proxy of the kind nonsense://"),
    ],
)  # fmt: skip
def test_each_fault_of_a_kubeconfig_is_one_line(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(UnreachableError, match=message) as error:
        found(tmp_path, content)
    assert "\n" not in str(error.value)
    assert "hidden" not in str(error.value)


def test_a_token_file_that_no_path_can_name_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match=r"tokenFile .* cannot be read"):
        login(tmp_path, {"tokenFile": "a\0b"})


@pytest.mark.parametrize("token", ["", "a b", "a\nb", "tök"])
def test_a_token_that_no_header_can_hold_is_refused(tmp_path: Path, token: str) -> None:
    (tmp_path / "token").write_text(token)
    with pytest.raises(UnreachableError, match=r"its token is empty, or is no token; log in again"):
        login(tmp_path, {"tokenFile": "token"})


def test_a_missing_context_is_a_wrong_option(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"--context gone: not in kubeconfig .*, which has here"):
        found(tmp_path, config(), "gone")
    # A file need not have a current context.
    assert found(tmp_path, {**config(), "current-context": None}, "here").namespace == "default"


def test_a_key_with_a_password_is_refused_without_a_question(tmp_path: Path) -> None:
    path, _ = certificate(tmp_path, "ours", host="x")
    key = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIH0MF8GCSqGSIb3DQEFDTBS\n-----END ENCRYPTED PRIVATE KEY-----\n"
    (tmp_path / "locked").write_text(key)
    with pytest.raises(UnreachableError, match="a key must have no password"):
        found(tmp_path, config(user={"client-certificate": str(path), "client-key": "locked"}))


def test_a_kubeconfig_that_begins_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    assert found(tmp_path, "\ufeff" + json.dumps(config())).credentials.server == HTTPS


def test_the_api_uses_the_kubeconfigs_namespace_unless_the_user_names_another(tmp_path: Path) -> None:
    found(tmp_path, config(namespace="training"))
    access = ClusterAccess(kubeconfig=tmp_path / "config")
    assert connect(access).namespace == "training"
    assert connect(ClusterAccess(kubeconfig=tmp_path / "config", namespace="mine")).namespace == "mine"


def test_a_pod_logs_in_as_its_service_account_with_its_current_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = certificate(tmp_path, "ca", host="x")
    for name, text in (("token", "first\n"), ("namespace", "training\n")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr("launcher.kube.kubeconfig.SERVICE_ACCOUNT", tmp_path)
    monkeypatch.setattr("launcher.kube.access.SERVICE_ACCOUNT", tmp_path)
    monkeypatch.setattr("launcher.kube.kubeconfig.DEFAULT_KUBECONFIG", tmp_path / "none")
    for host, server in (("10.0.0.1", "https://10.0.0.1:443"), ("fd00::1", "https://[fd00::1]:443")):
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
        cluster = find_cluster(ClusterAccess())
        assert (cluster.credentials.server, cluster.namespace) == (server, "training")
        assert cluster.credentials.ca_file == str(path.with_suffix(".crt"))
    assert cluster.credentials.login() == [("Authorization", "Bearer first")]
    (tmp_path / "token").write_text("second")
    assert cluster.credentials.login() == [("Authorization", "Bearer second")]
