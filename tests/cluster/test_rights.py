"""The Roles of k8s/manifests have exactly the rights that a launcher uses, as the API server's audit log shows."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from docs.manifests import ACCOUNT, FOLDER
from launcher.cluster.rbac import CLUSTER_VERBS, VERBS
from launcher.kinds.labels import JOB_LABEL, MANAGED
from launcher.kube.resources import Resource
from tests.cluster.support import fake_trainer
from tests.cluster.support.terminal import Terminal
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.storage import claims
from tests.cluster.testbed.volcano.install import Volcano

# No node has this resource: a job has all its objects, and computes nothing.
NOWHERE = ("--resource", "huawei.com/Ascend950", "--detach")
# Every user has these rights: to ask for a cluster's resources, and for the user's own rights.
OF_EVERY_USER = {("get", "", ""), ("create", "authorization.k8s.io", "selfsubjectaccessreviews")}


@pytest.fixture
def terminal(cluster: Cluster, volcano: Volcano, namespace: str, tmp_path: Path) -> Terminal:
    """Return a terminal of a user who has only the Role, in a namespace in which Volcano acts."""
    fake_trainer.load_image(cluster, tmp_path)
    claims(cluster, namespace, {name: tmp_path / name for name in ("pnas-data", "pnas-output")})
    kubectl = cluster.kubectl
    kubectl("label", "namespace", namespace, *(f"{name}={value}" for name, value in volcano.labels.items()))
    for name in ("rbac.yaml", "rbac-volcano.yaml"):
        kubectl("apply", "--namespace", namespace, "--filename", str(FOLDER / name))
    token = kubectl("create", "token", ACCOUNT, "--namespace", namespace).strip()
    admin = Terminal(cluster, namespace, tmp_path, cluster.kubeconfig)
    config = admin.kubeconfig_with("launcher", lambda config: config["users"][0].update(user={"token": token}))
    return Terminal(cluster, namespace, tmp_path, config)


def leave_behind(cluster: Cluster, namespace: str, job: str) -> None:
    """Create the Service that an earlier job of this name left, with an owner that stays."""
    account = cluster.get("serviceaccount", "default", "--namespace", namespace)["metadata"]
    owner = {"apiVersion": "v1", "kind": "ServiceAccount", "name": "default", "uid": account["uid"]}
    labels = {**MANAGED, JOB_LABEL: job}
    metadata = {"name": job, "namespace": namespace, "labels": labels, "ownerReferences": [owner]}
    cluster.create({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"clusterIP": "None"}})


def asked(cluster: Cluster, user: str) -> set[tuple[str, str, str]]:
    """Return (verb, group, resource) of each request that the API server granted to this user."""
    requests = set()
    for line in (cluster.folder / "audit.log").read_text().splitlines():
        event = json.loads(line)
        # A user whom the server does not know has no name, for example after the end of a login.
        if event["user"].get("username") != user or event["responseStatus"].get("code") == 403:
            continue
        target = event.get("objectRef", {})
        resource = "/".join(filter(None, (target.get("resource", ""), target.get("subresource", ""))))
        requests.add((event["verb"], target.get("apiGroup", ""), resource))
    return requests


def type_every_command(terminal: Terminal) -> None:
    """Type each command, on both kinds of job."""
    leave_behind(terminal.cluster, terminal.namespace, "by-batch")
    for backend, more in (("batch", ("--nodes", "2")), ("volcano", ())):
        name = f"by-{backend}"
        words = (*NOWHERE, "--backend", backend, "--npus", "1", "--name", name, "--release", "tried", *more)
        submitted = terminal.submit(*words)
        assert submitted.returncode == 0, submitted.stderr
        assert terminal.submit(*words).returncode == 0, "the same again"
        with terminal.start("logs", name, "-f") as follower:
            assert follower.stdout is not None
            next(line for line in follower.stdout if f"job {name}: Pending" in line)
            follower.kill()
        assert terminal.run("status", name).returncode == 0
        assert terminal.run("wait", name, "--timeout", "1").returncode == 124
        cancelled = terminal.run("cancel", *((name,) if backend == "batch" else ("--release", "tried")))
        assert cancelled.returncode == 0, cancelled.stderr
        assert f"{name} Cancelled" in cancelled.stdout
        again = terminal.run("submit", "--backend", backend, "--name", name, "--resume", "auto", "--detach")
        assert again.returncode == 0, again.stderr
        deleted = terminal.run("delete", name, "--force")
        assert deleted.returncode == 0, deleted.stderr
    fake_trainer.start_job(terminal.cluster, terminal.namespace, "spoken", 100, 0, 20)
    followed = terminal.run("logs", "spoken", "-f")
    assert "100 lines from 1 device, 0 missing" in followed.stderr + followed.stdout
    assert terminal.run("list").returncode == 0
    doctor = terminal.run("doctor", "--backend", "volcano", "--image", "r/pnas:1")
    assert doctor.returncode == 0, doctor.stdout
    assert "without, which is seldom missed: list nodes, get queues.scheduling.volcano.sh" in doctor.stdout
    unseen = {line.split()[1] for line in doctor.stdout.splitlines() if line.startswith("unknown ")}
    assert {"queue", "NPUs", "image", "data"} <= unseen, doctor.stdout


def flat(verbs: Mapping[Resource, tuple[str, ...]]) -> set[tuple[str, str, str]]:
    """Return (verb, group, resource), in the audit log's words."""
    return {(verb, resource.group, resource.plural) for resource, names in verbs.items() for verb in names}


def test_the_roles_have_exactly_the_rights_that_a_launcher_uses(terminal: Terminal) -> None:
    type_every_command(terminal)
    user = f"system:serviceaccount:{terminal.namespace}:{ACCOUNT}"
    assert asked(terminal.cluster, user) - OF_EVERY_USER == flat(VERBS), "without the ClusterRole"
    kubectl = terminal.cluster.kubectl
    role = str(FOLDER / "cluster-role.yaml")
    kubectl("apply", "--filename", role)
    bound = ("--clusterrole", ACCOUNT, "--serviceaccount", f"{terminal.namespace}:{ACCOUNT}")
    kubectl("create", "clusterrolebinding", terminal.namespace, *bound)
    done = terminal.submit("--npus", "8", "--backend", "volcano", "--dry-run", "server")
    assert done.returncode == 0, done.stderr
    assert asked(terminal.cluster, user) - OF_EVERY_USER == flat(VERBS) | flat(CLUSTER_VERBS)


def test_kubectl_takes_every_file(cluster: Cluster, volcano: Volcano, namespace: str) -> None:
    assert volcano.labels
    for path in FOLDER.iterdir():
        words = ("apply", "--dry-run=server", "--validate=strict", "--namespace", namespace, "--filename", str(path))
        said = cluster.kubectl(*words)
        assert said.count("(server dry run)") == len(re.findall("^kind:", path.read_text(), re.MULTILINE)), said
