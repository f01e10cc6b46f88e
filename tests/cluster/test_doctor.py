"""`doctor` on a real cluster names the causes that keep a job from running, and the words are the server's own."""

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.support.terminal import Terminal, job_claims, own_namespace
from tests.cluster.support.waiting import until
from tests.cluster.testbed.artifacts import images
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.npus.device_plugin import RESOURCE
from tests.cluster.testbed.volcano.install import SCHEDULER, Volcano

JOB = ("--image", images.TRAINER, "--image-pull-policy", "Never", "--npus", "8")
BATCH = ("--backend", "batch")
RESTRICTED = "pod-security.kubernetes.io/enforce=restricted"


@pytest.fixture(scope="module")
def terminal(cluster: Cluster, volcano: Volcano, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """Return a terminal in one namespace with both claims, in which Volcano acts."""
    home = tmp_path_factory.mktemp("home")
    labels = [f"{name}={value}" for name, value in volcano.labels.items()]
    with own_namespace(cluster) as namespace, job_claims(cluster, namespace, home / "images"):
        cluster.kubectl("label", "namespace", namespace, RESTRICTED, *labels)
        yield Terminal(cluster, namespace, home, cluster.kubeconfig)


@contextmanager
def existing(terminal: Terminal, kind: str, spec: Mapping[str, Any], api_version: str = "v1") -> Iterator[None]:
    """Create an object of the namespace, and delete it in the end; return when the server has seen a quota."""
    place = ("--namespace", terminal.namespace)
    metadata = {"name": "team", "namespace": terminal.namespace}
    terminal.cluster.create({"apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": dict(spec)})
    if kind == "ResourceQuota":
        until(lambda: terminal.cluster.get("resourcequota", "team", *place)["status"].get("used"))
    try:
        yield
    finally:
        terminal.cluster.kubectl(
            "delete", f"{kind.lower()}.{api_version.partition('/')[0]}".removesuffix(".v1"), "team", *place
        )


def quota(terminal: Terminal, **hard: str) -> AbstractContextManager[None]:
    return existing(
        terminal, "ResourceQuota", {"hard": {name.replace("__", "/"): value for name, value in hard.items()}}
    )


@contextmanager
def both_nodes(terminal: Terminal, words: tuple[str, ...], undo: tuple[str, ...]) -> Iterator[None]:
    """Change both nodes by words of kubectl, in which NODE is a node's name."""
    kubectl, names = terminal.cluster.kubectl, [node.name for node in terminal.cluster.nodes]
    for name in names:
        kubectl(*(name if word == "NODE" else word for word in words))
    try:
        yield
    finally:
        for name in names:
            kubectl(*(name if word == "NODE" else word for word in undo))


@contextmanager
def unhealthy_chips(terminal: Terminal) -> Iterator[None]:
    """Make one chip of the first node ill, and two of the second."""

    def allocatable() -> list[str]:
        return [node["status"]["allocatable"][RESOURCE] for node in terminal.cluster.get("nodes")["items"]]

    for node, chips in zip(terminal.cluster.nodes, ({3}, {0, 7}), strict=True):
        node.make_unhealthy(chips)
    until(lambda: allocatable() == ["7", "6"], allocatable)
    try:
        yield
    finally:
        for node in terminal.cluster.nodes:
            node.make_unhealthy(set())
        until(lambda: allocatable() == ["8", "8"], allocatable)


@contextmanager
def queues(terminal: Terminal) -> Iterator[None]:
    """Make a queue that is too small."""
    spec = {"weight": 1, "capability": {RESOURCE: "4"}}
    metadata = {"name": "pnas-small"}
    terminal.cluster.create(
        {"apiVersion": "scheduling.volcano.sh/v1beta1", "kind": "Queue", "metadata": metadata, "spec": spec}
    )
    try:
        yield
    finally:
        terminal.cluster.kubectl("delete", "queue.scheduling.volcano.sh", "pnas-small")


TAINT = ("taint", "node", "NODE", "npu=busy:NoSchedule"), ("taint", "node", "NODE", "npu-")
CORDON = ("cordon", "NODE"), ("uncordon", "NODE")
LIMITS = {"limits": [{"type": "Container", "max": {"cpu": "500m"}}]}
SITUATIONS = {
    "job quota": lambda terminal: quota(terminal, **{"count__jobs.batch": "0"}),
    "npu quota": lambda terminal: quota(terminal, **{f"requests.{RESOURCE.replace('/', '__')}": "4"}),
    "pod quota": lambda terminal: quota(terminal, pods="1"),
    "limit range": lambda terminal: existing(terminal, "LimitRange", LIMITS),
    "taint": lambda terminal: both_nodes(terminal, *TAINT),
    "cordon": lambda terminal: both_nodes(terminal, *CORDON),
    "ill chips": unhealthy_chips,
    "small queue": queues,
}
VOLCANO = ("--backend", "volcano")


@pytest.mark.parametrize(
    ("situation", "words", "about", "text"),
    [
        ("", (*BATCH, "--namespace", "nosuchns"), "namespace", "namespace nosuchns: there is no such namespace"),
        ("job quota", BATCH, "job", "no room for the job: "),
        ("npu quota", BATCH, "quota", "exceeded quota: team, requested: requests.huawei.com/Ascend910=8, used"),
        (
            "pod quota",
            (*BATCH, "--nodes", "2"),
            "quota",
            "quota team: the job's pods ask for 2 pods, and the namespace",
        ),
        (
            "",
            (*BATCH, "hostNetwork: true"),
            "pod security",
            'violates PodSecurity "restricted:latest": host namespaces',
        ),
        (
            "limit range",
            (*BATCH, "--cpu", "1"),
            "limit range",
            "maximum cpu usage per Container is 500m, but limit is 1",
        ),
        ("", (*BATCH, "--priority-class", "nosuch"), "priority class", "no PriorityClass with name nosuch was found"),
        ("", (*BATCH, "serviceAccountName: none"), "service account", 'serviceaccount "none" not found'),
        ("taint", BATCH, "NPUs", "node1, node2 tainted npu=busy:NoSchedule (choose other nodes, or tolerate it"),
        ("cordon", BATCH, "NPUs", "node1, node2 cordoned"),
        ("ill chips", BATCH, "NPUs", f"node1 only 7 of 8 {RESOURCE} healthy"),
        ("", (*BATCH, "--cpu", "900"), "NPUs", "--cpu 900: no node has more than "),
        ("", (*BATCH, "--nodes", "3"), "NPUs", f"the job needs 3 nodes with 8 {RESOURCE} and 0.8 cpu"),
        ("", (*BATCH, "--image", "r/none:1"), "image", "--image-pull-policy Never pulls no image"),
        ("", (*BATCH, "--image-pull-secret", "none"), "secret none", "has no such secret"),
        ("", (*BATCH, "schedulerName: nobody"), "scheduler", "no sign of a scheduler named nobody"),
        (
            "small queue",
            (*VOLCANO, "--queue", "pnas-small"),
            "queue pnas-small",
            "the queue's capability is 4: it would",
        ),
        ("", (*VOLCANO, "--queue", "none"), "queue none", "--queue none: there is no such queue"),
    ],
)
def test_doctor_fails_with_the_cause(
    terminal: Terminal, situation: str, words: tuple[str, ...], about: str, text: str
) -> None:
    overlay = terminal.home / "overlay.yaml"
    if ": " in words[-1]:
        overlay.write_text(f"spec: {{{words[-1]}}}")
        words = (*words[:-1], "--overlay", str(overlay))
    options = dict(zip(JOB[::2], JOB[1::2], strict=True)) | dict(zip(words[::2], words[1::2], strict=True))
    with SITUATIONS[situation](terminal) if situation else nullcontext():
        done = terminal.run("doctor", *(word for option in options.items() for word in option), "--json")
    findings = {finding["about"]: finding for finding in json.loads(done.stdout)["items"]}
    faults = {name: finding for name, finding in findings.items() if finding["state"] not in ("ok", "unknown")}
    assert done.returncode == 5, done.stdout
    assert text in findings[about]["text"], faults
    # Volcano's webhook refuses a job in a missing queue, too.
    assert {*faults} - {"job"} == {about} - {"job"}


def test_doctor_is_content_with_a_ready_cluster_and_names_what_it_cannot_see(
    terminal: Terminal, volcano: Volcano
) -> None:
    done = terminal.run("doctor", *VOLCANO, *JOB, "--nodes", "2")
    assert done.returncode == 0, done.stdout
    states = {line.split()[1]: line.split()[0] for line in done.stdout.splitlines()}
    # Split at white space, the rank table is `rank`.
    assert {states.pop(name) for name in ("data", "image", "rank", "scheduler")} == {"unknown"}
    assert {*states.values()} == {"ok"}, done.stdout
    volcano.stop(SCHEDULER)
    try:
        submitted = terminal.run("submit", *VOLCANO, *JOB, "--name", "earlier", "--detach")
        assert submitted.returncode == 0, submitted.stderr
        until(lambda: "is it running?" in terminal.run("status", "earlier").stdout)
        done = terminal.run("doctor", *VOLCANO, *JOB)
    finally:
        volcano.start(SCHEDULER)
        terminal.run("delete", "earlier", "--force")
    assert done.returncode == 5, done.stdout
    assert "later    scheduler          job earlier waits: Volcano's scheduler has not looked at it" in done.stdout


def test_a_waiting_job_names_the_nodes_and_the_next_step(terminal: Terminal, tmp_path: Path) -> None:
    with SITUATIONS["taint"](terminal):
        with terminal.start("submit", *BATCH, *JOB, "--name", "tainted") as follower:
            assert follower.stdout is not None
            output = []
            for line in follower.stdout:
                output.append(line)
                if "untolerated taint" in line:
                    break
            follower.kill()
        terminal.run("delete", "tainted", "--force")
    text = "".join(output)
    assert "node1, node2 tainted npu=busy:NoSchedule" in output[0], "a warning before the start"
    assert "--toleration npu=busy:NoSchedule" in output[-1], text
