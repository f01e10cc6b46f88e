"""A login plugin never hangs a command, and each of its faults is one line that shows no token."""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import UnreachableError
from launcher.kube.exec_plugin import ExecPlugin, cluster_info

V1 = "client.authentication.k8s.io/v1"


def answer(**status: Any) -> str:
    return f"print({json.dumps({'apiVersion': V1, 'kind': 'ExecCredential', 'status': status})!r})"


def plugin(
    folder: Path, script: str, *, limit_s: float = 30, clock: Callable[[], float] = lambda: 1_000_000.0, **settings: Any
) -> ExecPlugin:
    program = folder / "plugin"
    program.write_text(f"#!{sys.executable}\n{script}\n")
    program.chmod(0o755)
    values = {"apiVersion": V1, "command": "./plugin", "interactiveMode": "Never", **settings}
    return ExecPlugin(values, folder, {"server": "https://x"}, "user", limit_s=limit_s, clock=clock)


@pytest.mark.parametrize(
    ("script", "settings", "message"),
    [
        ("", {"command": "no-such-plugin", "installHint": "ask\nus"}, "no-such-plugin: is not there; ask us"),
        ("", {"command": "/dev/null"}, "cannot be run: Permission denied"),
        ("", {"command": ""}, "exec needs a command"),
        ("", {"apiVersion": "client.authentication.k8s.io/v1alpha1"}, "exec needs a command, and an apiVersion of"),
        *(("", {"args": args}, "args must be a list") for args in (5, "get-token", {"a": "b"})),
        ("", {"env": [{"name": "A"}]}, "env one of names and values"),
        ("", {"interactiveMode": "Always"}, "asks at a terminal, and there is no terminal here"),
        ("input()", {}, "ended with 1, and said: .*EOFError"),
        ("input()", {"interactiveMode": "IfAvailable"}, "ended with 1"),
        ("import sys; sys.exit('session over:\\nlog in')", {}, "and said: session over: log in; log in again"),
        ("print('s3cret')", {}, "its answer is not an ExecCredential"),
        ("pass", {}, "its answer is not an ExecCredential"),
        ("print('[]')", {}, "its answer is not an ExecCredential"),
        (answer().replace("/v1", "/v2"), {}, "answers in client.authentication.k8s.io/v2"),
        (answer(), {}, "no token and no certificate with a key"),
        (answer(clientCertificateData="s3cret"), {}, "no token and no certificate with a key"),
        (answer(token="s3cret", expirationTimestamp="soon"), {}, "its answer is not an ExecCredential"),
    ],
)  # fmt: skip
def test_each_fault_is_one_line(tmp_path: Path, script: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UnreachableError, match=message) as error:
        plugin(tmp_path, script, **settings).login()
    assert "\n" not in str(error.value)
    assert "s3cret" not in str(error.value)


def test_a_plugin_that_does_not_end_is_ended_and_named(tmp_path: Path) -> None:
    script = "import signal, sys; print('visit x', file=sys.stderr, flush=True); signal.pause()"
    with pytest.raises(UnreachableError, match=r"plugin: did not end within .* s.*; run it by hand"):
        plugin(tmp_path, script, limit_s=0.5).login()


def test_a_program_that_the_plugin_leaves_behind_holds_up_nothing(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = (
        "import os, pathlib, signal\n"
        f"if (child := os.fork()) == 0: signal.pause()\n"
        f"pathlib.Path({str(pid)!r}).write_text(str(child))\n"
    )
    try:
        assert plugin(tmp_path, script + answer(token="t"), limit_s=20).login().token == "t"
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)


def test_a_plugin_gets_its_arguments_variables_and_the_cluster(tmp_path: Path) -> None:
    script = (
        "import json, os, sys\n"
        "token = [sys.argv[1:], os.environ['A'], json.loads(os.environ['KUBERNETES_EXEC_INFO'])['spec'], os.getcwd()]\n"
        f"print(json.dumps({{'apiVersion': {V1!r}, 'status': {{'token': json.dumps(token)}}}}))"
    )
    login = plugin(
        tmp_path, script, args=["a", 1], env=[{"name": "A", "value": "b"}], provideClusterInfo="true"
    ).login()
    spec = {"interactive": False, "cluster": {"server": "https://x"}}
    # Like kubectl's, it runs in the user's folder; only the command is relative to the kubeconfig.
    assert json.loads(str(login.token)) == [["a", "1"], "b", spec, str(Path.cwd())]


def test_a_plugin_learns_of_the_cluster_what_the_kubeconfig_says(tmp_path: Path) -> None:
    ca = tmp_path / "ca"
    ca.write_bytes(b"PEM")
    extensions = [
        {"name": "other", "extension": 1},
        "no extension",
        {"name": "client.authentication.k8s.io/exec", "extension": {"a": "b"}},
    ]
    values = {"server": "x", "tls-server-name": "n", "certificate-authority": "ca", "extensions": extensions}
    known = {"tls-server-name": "n", "certificate-authority-data": "UEVN", "config": {"a": "b"}}
    assert cluster_info("https://x", values, ca) == {"server": "https://x", **known}
    assert cluster_info("https://x", {"extensions": "none"}, None) == {"server": "https://x"}


@pytest.mark.parametrize(
    ("expires", "runs"),
    [(None, 1), ("1970-01-13T00:00:00Z", 1), ("1970-01-12T13:46:39.123456789+00:00", 1), ("1970-01-12T13:40:00Z", 1)],
)
def test_a_login_is_held_and_a_plugin_with_expired_logins_does_not_run_for_each_request(
    tmp_path: Path, expires: str | None, runs: int
) -> None:
    count = tmp_path / "count"
    script = f"open({str(count)!r}, 'a').write('x')\n" + answer(token="t", expirationTimestamp=expires)
    program = plugin(tmp_path, script)
    assert {program.login().token for _ in range(3)} == {"t"}
    assert len(count.read_text()) == runs


def test_a_login_is_renewed_before_it_expires_and_a_failure_leaves_the_last_one(tmp_path: Path) -> None:
    script = (
        f"import os, sys; sys.exit('gone') if os.path.exists({str(tmp_path / 'second')!r}) else None\n"
        f"first = not os.path.exists({str(tmp_path / 'first')!r}); "
        f"os.mkdir({str(tmp_path)!r} + ('/first' if first else '/second'))\n"
        "status = {'token': str(first), 'expirationTimestamp': f'1970-01-01T00:0{1 if first else 2}:00Z'}\n"
        f"import json; print(json.dumps({{'apiVersion': {V1!r}, 'status': status}}))"
    )
    now = [0.0]
    program = plugin(tmp_path, script, clock=lambda: now[0])
    tokens = []
    for moment in (0, 49, 51, 109, 111, 300):
        now[0] = moment
        tokens.append(program.login().token)
    assert tokens == ["True", "True", "False", "False", "False", "False"]
