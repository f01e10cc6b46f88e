"""A run comes home from its claim: by a pod of the job, or by one with the same restrictions, which then is gone."""

import dataclasses
import json
from pathlib import Path

import pytest

from docs.manifests import ACCOUNT, FOLDER
from launcher.cluster.rbac import FETCH_VERBS, VERBS
from launcher.cluster.run_files import READER_LABEL
from tests.cluster.support.login_proxy import LoginProxy
from tests.cluster.support.terminal import Terminal
from tests.cluster.test_rights import OF_EVERY_USER, asked, flat
from tests.documents import one_document


@pytest.fixture
def user(terminal: Terminal) -> Terminal:
    """Return the terminal of a user who has only the launcher's Role."""
    kubectl, namespace = terminal.cluster.kubectl, ("--namespace", terminal.namespace)
    kubectl("label", "namespace", terminal.namespace, "pod-security.kubernetes.io/enforce=restricted", "--overwrite")
    kubectl("apply", *namespace, "--filename", str(FOLDER / "rbac.yaml"))
    token = kubectl("create", "token", ACCOUNT, *namespace).strip()
    config = terminal.kubeconfig_with("user", lambda config: config["users"][0].update(user={"token": token}))
    return dataclasses.replace(terminal, kubeconfig=config)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".pnas-fetch.json"
    }


def test_a_run_is_fetched_from_its_claim_while_it_runs_and_after_its_end(user: Terminal, tmp_path: Path) -> None:
    kubectl = user.cluster.kubectl
    words = ("--npus", "1", "--mode", "full", "--epochs", "400", "--lr", "1e-4", "--name", "home", "--detach")
    submitted = user.submit(*words)
    assert submitted.returncode == 0, submitted.stderr
    with user.start("logs", "home", "-f") as follower:
        assert follower.stdout is not None
        next(line for line in follower.stdout if " eval " in line)
        refused = user.run("fetch", "home", "--to", str(tmp_path / "refused"))
        assert refused.returncode == 3
        assert "you have no right to create pods/exec in namespace" in refused.stderr
        kubectl("apply", "--namespace", user.namespace, "--filename", str(FOLDER / "rbac-fetch.yaml"))
        with LoginProxy("u", "p@w") as proxy:
            config = json.loads(user.kubeconfig.read_text())
            config["clusters"][0]["cluster"]["proxy-url"] = f"http://u:p%40w@127.0.0.1:{proxy.port}"
            (tmp_path / "far").write_text(json.dumps(config))
            far = dataclasses.replace(user, kubeconfig=tmp_path / "far")
            running = far.run("fetch", "home", "--to", str(tmp_path / "run"))
            assert (running.returncode, running.stderr) == (0, ""), "a pod of the job has read the files"
            assert (proxy.tunnels > 0, proxy.refusals) == (True, 0)
        assert (tmp_path / "run" / "metrics.jsonl").stat().st_size > 0
        assert user.run("cancel", "home").returncode == 0
        follower.wait(120)
    ended = user.run("fetch", "home", "--to", str(tmp_path / "run"), "--checkpoints", "--json")
    assert ended.returncode == 0, ended.stderr
    assert "starting pod home-files-" in ended.stderr
    document = one_document(ended.stdout, "Fetched")
    assert (document["problems"], "metrics.jsonl" in document["files"]) == ([], True)
    assert files_of(tmp_path / "run") == files_of(user.output("home"))
    readers = ("pods", "--namespace", user.namespace, "--selector", f"{READER_LABEL}=home")
    assert user.cluster.get(*readers)["items"] == [], "the pod is gone"
    bundled = user.run("bundle", "home", "--to", str(tmp_path / "home.tar.gz"), "--json")
    assert bundled.returncode == 0, bundled.stderr
    bundle = one_document(bundled.stdout, "Bundle")
    assert bundle["leftOut"] == []
    own = {f"attempt-1/node-0/{name}" for name in ("rank-0.txt", "environment.json")}
    assert {*own, "cluster/job.json", "events.txt", "console.log"} <= {*bundle["files"]}
    page = user.run("report", "home", "--to", str(tmp_path / "page.html"), "--json")
    assert page.returncode == 0, page.stderr
    assert json.loads(page.stdout)["problems"] == []
    assert "<figcaption>Loss" in (tmp_path / "page.html").read_text()
    used = asked(user.cluster, f"system:serviceaccount:{user.namespace}:{ACCOUNT}") - OF_EVERY_USER
    # The server also checks this right, since 1.35; the audit log does not show that.
    asked_inside = {("create", "", "pods/exec")}
    assert used - flat(VERBS) | asked_inside == flat(FETCH_VERBS) - flat(VERBS)
