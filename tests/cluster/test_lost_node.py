"""A node dies, is cut off or stands still while a job trains on it: the job goes on elsewhere, with the same bits.

PNAS_TEST_LOST_NODES sets how often each test does it; the moments are random, and the seed is printed with the seconds.
"""

import dataclasses
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from docs.manifests import ACCOUNT, FOLDER
from launcher import PROGRAM
from launcher.cluster.rbac import RECOVER_CLUSTER_VERBS, RECOVER_VERBS, VERBS
from tests.cluster.support.explain_cases import alone
from tests.cluster.support.explained_jobs import ExplainedJobs
from tests.cluster.support.terminal import POD, SMALL, Terminal, restricted
from tests.cluster.support.waiting import until
from tests.cluster.test_rights import OF_EVERY_USER, asked, flat
from tests.cluster.testbed import cluster as testbed
from tests.cluster.testbed import mindcluster
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.nodes.node import Node
from tests.cluster.testbed.volcano import install

TIMES = int(os.environ.get("PNAS_TEST_LOST_NODES", "1"))
SILENT_AFTER_S = 20
"""The cluster notices a silent node after this time, and after one more of five seconds it gives its pods up."""
# At a usual rate, a run as long as the second one diverges.
_USUAL = ("--npus", "1", "--mode", "full", "--steps", "40", "--checkpoint-every", "10", "--lr", "0.001")
SHORT = (*_USUAL, "--epochs", "3")
LONG = (*_USUAL, "--epochs", "1000")
LAST_STEP = 120
OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
_OTHERS = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["node1"]}]}
NOT_THE_FIRST = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [_OTHERS]}}


@pytest.fixture(scope="module")
def wide(cluster: Cluster) -> Iterator[Cluster]:
    """Start a cluster of three nodes, one more than a gang of two needs; the first one shows that it is possible."""
    with testbed.running(nodes=3, silent_after_s=SILENT_AFTER_S) as three_nodes:
        assert cluster.kubeconfig != three_nodes.kubeconfig
        yield three_nodes


@pytest.fixture
def shell(wide: Cluster, tmp_path: Path, digits: Path) -> Iterator[Terminal]:
    """Return a user's terminal on this cluster, for Kubernetes Jobs."""
    name = f"lost-{time.time_ns()}"
    testbed.create_namespace(wide, name)
    with restricted(wide, name, tmp_path, digits, PNAS_BACKEND="batch") as terminal:
        yield terminal
        wide.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def moments() -> random.Random:
    """Return a source of random moments, whose seed is printed."""
    seed = time.time_ns()
    sys.stdout.write(f"seed {seed}\n")
    return random.Random(seed)


def _submit(shell: Terminal, name: str, *words: str) -> None:
    options = [word for word in SMALL if word not in ("--steps", "4")]
    done = shell.run("submit", *POD, *options, "--node-timeout", "5s", "--name", name, "--detach", *words)
    assert done.returncode == 0, done.stderr


def _wait(shell: Terminal, job: str) -> None:
    done = shell.run("wait", job)
    assert done.returncode == 0, done.stderr + shell.run("logs", job, "--tail", "20").stdout


def _consoles(shell: Terminal, job: str) -> list[Path]:
    """Return the console files of rank 0, one of each container, in their order."""
    return sorted(shell.output(job).glob("0/console-*.log"), key=lambda path: int(path.stem.partition("-")[2]))


def _steps_in(path: Path) -> int:
    return path.read_text(errors="replace").count("] step ") if path.exists() else 0


def _until_it_trains(shell: Terminal, job: str, moments: random.Random) -> None:
    _until_it_takes_steps(shell, job)
    time.sleep(moments.uniform(0, 4))


def _steps(shell: Terminal, job: str, *, without: Sequence[Path] = ()) -> int:
    """Return how many steps the consoles of rank 0 show."""
    return sum(_steps_in(path) for path in _consoles(shell, job) if path not in without)


def _until_it_takes_steps(shell: Terminal, job: str, *, more_than: int = 0, without: Sequence[Path] = ()) -> None:
    until(
        lambda: _steps(shell, job, without=without) > more_than,
        lambda: [shell.run("status", job).stdout, *(path.read_text()[-3000:] for path in _consoles(shell, job))],
        every_s=0.1,
    )


def _node_of(shell: Terminal, pod: dict[str, Any]) -> Node:
    return next(node for node in shell.cluster.nodes if node.name == pod["spec"]["nodeName"])


def _until_given_up(shell: Terminal, job: str, node: Node) -> float:
    """Wait until the cluster has given up the job's pod on the node; return the moment, in seconds since 1970."""
    until(
        lambda: any("deletionTimestamp" in pod["metadata"] for pod in shell.pods(job) if _node_of(shell, pod) is node)
    )
    return time.time()


def _until_status_says(shell: Terminal, job: str, words: str) -> None:
    until(lambda: words in shell.run("status", job).stdout, lambda: shell.run("status", job).stdout)


def _until_its_containers_are_gone(node: Node) -> None:
    until(lambda: not node.container_pids())


def _metrics(shell: Terminal, job: str) -> list[dict[str, Any]]:
    rows = map(json.loads, (shell.output(job) / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row["kind"] == "step"]


def _assert_same_bits(shell: Terminal, job: str, undisturbed: str) -> None:
    assert _metrics(shell, job) == _metrics(shell, undisturbed)
    state = f"checkpoints/step-{LAST_STEP:09d}/state.safetensors"
    assert (shell.output(job) / state).read_bytes() == (shell.output(undisturbed) / state).read_bytes()


@contextmanager
def _failing(cluster: Cluster, node: Node, fail: Callable[[], None], repair: Callable[[], None]) -> Iterator[None]:
    """Let the node fail; repair it at the end, and wait until it is ready."""
    fail()
    try:
        yield
    finally:
        repair()
        patch = {"spec": {"taints": None}}  # the cluster's own taints come back if they must
        cluster.kubectl("patch", "node", node.name, "--type=merge", f"--patch={json.dumps(patch)}")
        cluster.kubectl("wait", "--for=condition=Ready", f"node/{node.name}", "--timeout=300s")


@pytest.fixture
def user(shell: Terminal) -> Terminal:
    """Return the terminal of a user who has only the launcher's Role."""
    kubectl, namespace = shell.cluster.kubectl, ("--namespace", shell.namespace)
    kubectl("apply", *namespace, "--filename", str(FOLDER / "rbac.yaml"))
    token = kubectl("create", "token", ACCOUNT, *namespace).strip()
    config = shell.kubeconfig_with("user", lambda config: config["users"][0].update(user={"token": token}))
    return dataclasses.replace(shell, kubeconfig=config)


def _grant_recover(shell: Terminal) -> None:
    """Do as the file's header says."""
    kubectl, role = shell.cluster.kubectl, f"{ACCOUNT}-recover"
    kubectl("apply", "--namespace", shell.namespace, "--filename", str(FOLDER / "rbac-recover.yaml"))
    bound = ("--clusterrole", role, "--serviceaccount", f"{shell.namespace}:{ACCOUNT}")
    kubectl("create", "clusterrolebinding", role, *bound)


def _revoke_recover(shell: Terminal) -> None:
    """Check that `recover` used these rights and no others, and take them away."""
    rights = asked(shell.cluster, f"system:serviceaccount:{shell.namespace}:{ACCOUNT}") - OF_EVERY_USER
    assert rights - flat(VERBS) == flat(RECOVER_VERBS) | flat(RECOVER_CLUSTER_VERBS)
    shell.cluster.kubectl("delete", "clusterrolebinding", f"{ACCOUNT}-recover")


def test_a_gang_goes_on_after_the_pod_of_its_dead_node_was_recovered(
    shell: Terminal, user: Terminal, moments: random.Random
) -> None:
    _submit(shell, "undisturbed", *SHORT, "--nodes", "2")
    _wait(shell, "undisturbed")
    others = ExplainedJobs(shell, backends=["batch"])
    for number in range(TIMES):
        job, lost = f"gang-{number}", f"lost-{number}"
        others.create(lost, pod=_on_the_other_nodes(lost), job={"parallelism": 2, "completions": 2})
        others.until_started(lost)
        _submit(shell, job, *SHORT, "--nodes", "2")
        refused = shell.run("recover", job)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (6, 1), refused.stderr
        assert "the cluster has given no pod up: its nodes answer" in refused.stderr
        _until_it_trains(shell, job, moments)
        pod = moments.choice([pod for pod in shell.pods(job) if _node_of(shell, pod).number != 1])
        node, name = _node_of(shell, pod), pod["metadata"]["name"]
        with _failing(shell.cluster, node, node.kill, node.revive):
            began = _until_given_up(shell, job, node)
            said = f"pod {name} cannot end, because its node {node.name} has not answered since "
            _until_status_says(shell, job, said)
            assert f"warning: job {job}: {said}" in shell.run("list").stderr
            _check_it_is_explained(others, job, lost, node)
            steps = _steps(shell, job)
            refused = user.run("recover", job)
            assert (refused.returncode, len(refused.stderr.splitlines())) == (3, 1), refused.stderr
            assert "you have no right to get nodes" in refused.stderr
            _grant_recover(shell)
            recovered = user.run("recover", job)
            _revoke_recover(shell)
            assert recovered.returncode == 0, recovered.stderr
            assert f"pod {name} deleted by force: node {node.name} has been silent for" in recovered.stderr
            _until_it_takes_steps(shell, job, more_than=steps)
            sys.stdout.write(f"dead node: first new step {time.time() - began:.1f} s after the toleration\n")
            _wait(shell, job)
        _assert_same_bits(shell, job, "undisturbed")


def _on_the_other_nodes(job: str) -> dict[str, Any]:
    """Return a pod's part by which each node but the first one gets one of the job's two pods."""
    return {"affinity": {**alone(job)["affinity"], "nodeAffinity": NOT_THE_FIRST}}


def _check_it_is_explained(others: ExplainedJobs, gang: str, lost: str, node: Node) -> None:
    """Check the first cause of a job whose pod cannot end, of one that has a pod there, and of one that waits."""
    unready = lost.replace("lost", "unready")
    others.create(unready, node=node.number)
    others.expect(
        {
            lost: ("node-lost", f"node {node.name} has not answered since "),
            unready: ("node-not-ready", f"{node.name} is not ready, and takes no pod of the job"),
        }
    )
    (first, *_) = json.loads(others.terminal.run("explain", gang, "--json").stdout)["causes"]
    assert (first["rule"], first["steps"]) == ("node-lost", [f"{PROGRAM} recover {gang}"])
    place = ("--namespace", others.terminal.namespace)
    others.terminal.cluster.kubectl("delete", "jobs", lost, unready, "--wait=false", *place)


def test_a_cluster_without_volcano_says_so(shell: Terminal) -> None:
    """No other test bed is sure to have no Volcano, and the last test of this file installs it."""
    for words in (("explain", "any"), ("status", "any")):
        done = shell.run(*words, "--backend", "volcano")
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (4, "", 1), done
        assert "has no Volcano; choose another --context" in done.stderr


@pytest.fixture
def control_plane_is_spared(wide: Cluster) -> Iterator[None]:
    """Keep pods off the node that runs the control plane, which cannot fail."""
    wide.kubectl("cordon", "node1")
    yield
    wide.kubectl("uncordon", "node1")


@pytest.mark.usefixtures("control_plane_is_spared")
def test_a_job_goes_on_elsewhere_after_its_node_was_cut_off_and_taken_out_of_service(
    shell: Terminal, moments: random.Random
) -> None:
    """Its pod trains on, and holds the run's folder: its successor asks it to save and to leave."""
    cluster = shell.cluster
    for number in range(TIMES):
        job = f"cut-{number}"
        _submit(shell, job, *LONG)
        _until_it_trains(shell, job, moments)
        (pod,) = shell.pods(job)
        node = _node_of(shell, pod)
        with _failing(cluster, node, node.cut_off, node.reconnect):
            _until_status_says(shell, job, f"node {node.name} has not answered since ")
            consoles = _consoles(shell, job)
            before = _steps_in(consoles[-1])
            cluster.kubectl("taint", "node", node.name, f"{OUT_OF_SERVICE}=nodeshutdown:NoExecute", "--overwrite")
            began = time.time()
            _until_it_takes_steps(shell, job, without=consoles)
            sys.stdout.write(f"cut off: first new step {time.time() - began:.1f} s after the taint\n")
            old, new = (path.read_text() for path in (*consoles, _consoles(shell, job)[-1]))
            assert old.count("] step ") > before, "the cut off pod trained on"
            assert "] stopped epoch=" in old
            assert "resumed bit_exact=yes" in new
            assert not cluster.get("job", job, "--namespace", shell.namespace)["status"].get("failed")
            assert shell.run("cancel", job).returncode == 0
            steps = [row["global_step"] for row in _metrics(shell, job)]
            assert steps == list(range(len(steps)))
            assert not (shell.output(job) / "metrics-replaced.jsonl").exists(), "no step was taken twice"


@pytest.mark.usefixtures("control_plane_is_spared")
def test_a_pod_of_a_paused_node_writes_nothing_when_it_goes_on(shell: Terminal, moments: random.Random) -> None:
    cluster = shell.cluster
    _submit(shell, "undisturbed", *SHORT)
    _wait(shell, "undisturbed")
    for number in range(TIMES):
        job = f"paused-{number}"
        _submit(shell, job, *SHORT)
        _until_it_trains(shell, job, moments)
        (pod,) = shell.pods(job)
        node = _node_of(shell, pod)
        with _failing(cluster, node, node.pause, node.resume):
            _until_given_up(shell, job, node)
            steps = _steps(shell, job)
            recovered = shell.run("recover", job)
            assert recovered.returncode == 0, recovered.stderr
            _until_it_takes_steps(shell, job, more_than=steps)
            (successor,) = (_node_of(shell, pod) for pod in shell.pods(job))
            successor.pause()
            before = _files(shell.output(job))
            node.resume()
            cluster.kubectl("wait", "--for=condition=Ready", f"node/{node.name}", "--timeout=300s")
            # The kubelet ends the container of a pod that does not exist any more; until then it could write.
            _until_its_containers_are_gone(node)
            assert _files(shell.output(job)) == before
            successor.resume()
            _wait(shell, job)
        _assert_same_bits(shell, job, "undisturbed")


def _files(run: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return the inode, the time of the last change and the content of each file."""
    files = (path for path in sorted(run.rglob("*")) if path.is_file() and path.name != "run.lock")
    return {
        str(path.relative_to(run)): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in files
    }


@pytest.mark.usefixtures("control_plane_is_spared")
def test_mindcluster_moves_a_volcano_job_off_a_dead_node(shell: Terminal, moments: random.Random) -> None:
    """MindCluster and Volcano are stand-ins here."""
    shell = dataclasses.replace(shell, variables={**shell.variables, "PNAS_BACKEND": "volcano"})
    with install.volcano(shell.cluster) as volcano:
        labels = [f"{name}={value}" for name, value in volcano.labels.items()]
        shell.cluster.kubectl("label", "namespace", shell.namespace, *labels)
        for number in range(TIMES):
            job = f"gang-{number}"
            _submit(shell, job, *SHORT, "--nodes", "2", "--device", "cpu")
            label = f"{mindcluster.LABEL}=grace"
            words = ("label", "jobs.batch.volcano.sh", job, label, "--overwrite", "--namespace", shell.namespace)
            shell.cluster.kubectl(*words)
            _until_it_trains(shell, job, moments)
            pods = shell.pods(job)
            node = _node_of(shell, moments.choice([pod for pod in pods if _node_of(shell, pod).number != 1]))
            with _failing(shell.cluster, node, node.kill, node.revive):
                began = _until_given_up(shell, job, node)
                steps = _steps(shell, job)
                until(lambda: mindcluster.reschedule(shell.cluster, shell.namespace))
                _until_it_takes_steps(shell, job, more_than=steps)
                sys.stdout.write(
                    f"dead node, volcano: first new step {time.time() - began:.1f} s after the toleration\n"
                )
                _wait(shell, job)
