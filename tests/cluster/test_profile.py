"""A job in a cluster is profiled with the optional right to run a program in its pods, and with no other."""

import dataclasses
import json

import pytest

from docs.manifests import ACCOUNT, FOLDER
from launcher.cluster.rbac import FETCH_VERBS, VERBS
from tests.cluster.support.terminal import Terminal
from tests.cluster.test_rights import OF_EVERY_USER, asked, flat
from tests.cluster.test_volcano_jobs import rank_tables, terminal
from tests.documents import one_document

__all__ = ["rank_tables", "terminal"]

pytestmark = pytest.mark.usefixtures("rank_tables")


@pytest.fixture
def user(terminal: Terminal) -> Terminal:
    """Return the terminal of a user who has only the launcher's Roles."""
    kubectl, namespace = terminal.cluster.kubectl, ("--namespace", terminal.namespace)
    for name in ("rbac.yaml", "rbac-volcano.yaml"):
        kubectl("apply", *namespace, "--filename", str(FOLDER / name))
    token = kubectl("create", "token", ACCOUNT, *namespace).strip()
    config = terminal.kubeconfig_with("user", lambda config: config["users"][0].update(user={"token": token}))
    return dataclasses.replace(terminal, kubeconfig=config)


@pytest.mark.parametrize(("backend", "nodes"), [("batch", ()), ("volcano", ("--nodes", "2"))])
def test_a_rank_of_a_running_job_is_profiled(user: Terminal, backend: str, nodes: tuple[str, ...]) -> None:
    words = ("--backend", backend, "--mode", "full", "--epochs", "2000", "--lr", "1e-4", "--name", "slow", "--detach")
    devices = ("--npus", "1" if nodes else "2", *nodes)
    submitted = user.submit(*words, *devices)
    assert submitted.returncode == 0, submitted.stderr
    waits = user.run("profile", "slow")
    assert waits.returncode in (3, 6), "the job waits, or runs and the right is missing"
    with user.start("logs", "slow", "-f") as follower:
        assert follower.stdout is not None
        next(line for line in follower.stdout if " step " in line)
        refused = user.run("profile", "slow")
        assert refused.returncode == 3
        assert "you have no right to create pods/exec in namespace" in refused.stderr
        user.cluster.kubectl("apply", "--namespace", user.namespace, "--filename", str(FOLDER / "rbac-fetch.yaml"))
        profiled = user.run("profile", "slow", "--steps", "2", "--rank", "1", "--json")
        assert profiled.returncode == 0, profiled.stderr
        missing = user.run("profile", "slow", "--rank", "9")
        assert (missing.returncode, missing.stderr.splitlines()[-1]) == (
            4,
            "error: job slow has no rank 9: its ranks are 0 to 1",
        )
        assert user.run("cancel", "slow").returncode == 0
        follower.wait(120)
    document = one_document(profiled.stdout, "Profile")
    run = user.output("slow")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    # A profile that begins with the last step of an epoch ends there.
    left_steps = 1 + max(row["step"] for row in rows if row["kind"] == "step") - document["firstStep"]
    assert (document["rank"], document["steps"], len(document["operators"])) == (1, min(2, left_steps), 3)
    (trace,) = run.glob("profiles/*-rank-1/trace.json.gz")
    place, _, claim = document["trace"].partition(" on claim ")
    assert (place.endswith(f"/slow/{trace.relative_to(run)}"), claim) == (True, "pnas-output")
    assert any(row["kind"] == "step" and row["global_step"] > 2 for row in rows), "the run has gone on"
    ended = user.run("profile", "slow")
    assert ended.returncode == 6
    assert "only a job that trains can be profiled" in ended.stderr
    used = asked(user.cluster, f"system:serviceaccount:{user.namespace}:{ACCOUNT}") - OF_EVERY_USER
    # The server also checks the right to create, since 1.35; the audit log does not show that.
    assert used - flat(VERBS) == {("get", "", "pods/exec")}
    assert {("get", "", "pods/exec"), ("create", "", "pods/exec")} <= flat(FETCH_VERBS)
