"""`explain` on a real cluster: each rule finds its cause in the words of the real components, many jobs at once.

Volcano is the stand-in here, MindCluster's controller is missing, and its report is written by the test. The causes of
lost nodes are in test_lost_node.py, the causes of Kueue in test_kueue.py.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from launcher.kinds.labels import RING_CONTROLLER
from tests.cluster.support import explain_faults
from tests.cluster.support.explain_cases import CASES, LATER_CASES, LICENCE, alone
from tests.cluster.support.explained_jobs import THE_TRAINER, ExplainedJobs
from tests.cluster.support.terminal import Terminal, job_claims, own_namespace
from tests.cluster.support.waiting import until
from tests.cluster.test_doctor import existing, quota, unhealthy_chips
from tests.cluster.test_volcano_jobs import closing
from tests.cluster.testbed import storage
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.npus.device_plugin import RESOURCE
from tests.cluster.testbed.npus.pod_annotations import CONFIGURATION
from tests.cluster.testbed.registry import registry
from tests.cluster.testbed.volcano.install import CONTROLLER, SCHEDULER, Volcano

LEFT = "[rank 0 npu:0 #1] progress done=0.3 left_s=600 left_low_s=500 left_high_s=700"
WAITS = "[node 0 #3] waiting for rank table /user/serverid/devindex/config/hccl.json: its status is initializing"
"""The trainer's words, which the job `tabled` writes itself."""


@pytest.fixture(scope="module")
def terminal(cluster: Cluster, volcano: Volcano, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """Return a terminal in one namespace with both claims and Pod Security, in which Volcano acts."""
    home = tmp_path_factory.mktemp("home")
    labels = [f"{name}={value}" for name, value in volcano.labels.items()]
    with own_namespace(cluster) as namespace, job_claims(cluster, namespace, home / "images"):
        cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted", *labels)
        yield Terminal(cluster, namespace, home, cluster.kubeconfig)


# Causes that are right for a moment before the last one.
EARLIER = {
    "crashes": ("first-failure",),
    "moved": ("volume",),
    **dict.fromkeys(("bygone", "prepared"), ("pod-failed",)),
    **dict.fromkeys(("closed", "gone", "reported", "full"), ("devices-in-use",)),
}


@pytest.fixture(scope="module")
def jobs(terminal: Terminal) -> ExplainedJobs:
    """Return the jobs of this module; two of them hold 12 of the 16 NPUs."""
    explained = ExplainedJobs(terminal)
    explained.create("holder", npus=8, node=1, script=f"echo '{LEFT}'; sleep 3600")
    explained.create("second", npus=4, node=2)
    explained.until_started("holder", "second")
    return explained


def place_of(terminal: Terminal) -> tuple[str, str]:
    """Return kubectl's words for the terminal's namespace."""
    return "--namespace", terminal.namespace


@contextmanager
def parts(terminal: Terminal) -> Iterator[None]:
    """Make the objects that the jobs of the first round need, or miss."""
    place, cluster = terminal.namespace, terminal.cluster
    program = {"metadata": {"name": "program", "namespace": place}, "data": {"prog": "no program"}}
    cluster.create({"apiVersion": "v1", "kind": "ConfigMap", **program}, storage.request(place, "unbound"))
    storage.claims(cluster, place, {"one-pod": cluster.folder / f"{place}-one-pod"}, modes=("ReadWriteOncePod",))
    explain_faults.create_volumes_of_one_node(terminal)
    with ExitStack() as stack:
        stack.enter_context(registry(cluster))
        stack.enter_context(explain_faults.policy_against(terminal, "unwanted"))
        stack.enter_context(quota(terminal, **{f"requests.{LICENCE.replace('/', '__')}": "0"}))
        stack.enter_context(existing(terminal, "LimitRange", {"limits": [{"type": "Container", "max": {"cpu": "64"}}]}))
        yield


def create_first_round(jobs: ExplainedJobs) -> None:
    """Create the jobs of CASES and LATER_CASES, and do to some of them what ends them, or keeps them from starting."""
    terminal, place = jobs.terminal, place_of(jobs.terminal)
    share = explain_faults.memory_request(terminal, 0.6)
    for node in (1, 2):
        jobs.create(f"heavy{node}", node=node, amounts={"memory": share})
    jobs.create("crowded", amounts={"memory": share})
    for name, case in CASES.items():
        jobs.create(name, **case.words)
    explain_faults.attach_disk(terminal)
    until(lambda: any(pod["spec"].get("nodeName") for pod in terminal.pods("single")))
    for name, case in LATER_CASES.items():
        jobs.create(name, **case.words)
    explain_faults.starve(terminal, "starved")
    terminal.cluster.kubectl("wait", "--for=condition=Failed", "job/bygone", *place, "--timeout=120s")
    terminal.cluster.kubectl("delete", "pods", "--selector=pnas/job=bygone", *place)


def test_each_cause_that_needs_no_volcano_is_named_first(terminal: Terminal, jobs: ExplainedJobs) -> None:
    expected = {name: (case.rule, case.text) for name, case in (*CASES.items(), *LATER_CASES.items()) if case.rule}
    with parts(terminal):
        create_first_round(jobs)
        jobs.expect({"crowded": ("resources-in-use", "are free, but no node has"), **expected}, earlier=EARLIER)
        assert json.loads(terminal.run("explain", "holder", "--json").stdout)["causes"] == [], "it runs"
        shown = terminal.run("explain", "busy")
        assert shown.returncode == 0, shown.stderr
        lines = shown.stdout.splitlines()
        assert [line.split()[0] for line in lines if not line.startswith(" ")] == ["job", "why", "evidence", "next"]
        document = json.loads(terminal.run("explain", "hccl", "--json").stdout)
        assert (document["kind"], document["phase"]) == ("Explanation", "Failed")
        assert [cause["rule"] for cause in document["causes"]][:1] == ["device-error"]


@pytest.fixture
def priorities(terminal: Terminal) -> Iterator[dict[str, str]]:
    """Create a priority below and one above the usual one; yield their names."""
    names = {word: f"{terminal.namespace}-{word}" for word in ("low", "high")}
    for name, value in zip(names.values(), (-10, 1000), strict=True):
        body = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}}
        terminal.cluster.create({**body, "value": value})
    yield names
    terminal.cluster.kubectl("delete", "priorityclass", *names.values())


def test_a_preempted_job_that_failed_says_so(
    terminal: Terminal, jobs: ExplainedJobs, priorities: dict[str, str]
) -> None:
    jobs.create("weak", npus=1, node=2, pod={"priorityClassName": priorities["low"]})
    jobs.until_started("weak")
    jobs.create("intruder", npus=4, node=2, pod={"priorityClassName": priorities["high"]})
    jobs.expect({"weak": ("preempted", "Preempted by pod")})
    terminal.cluster.kubectl("delete", "job", "intruder", "--namespace", terminal.namespace, "--cascade=foreground")


def test_each_cause_of_queues_and_changed_nodes_is_named_first(terminal: Terminal, jobs: ExplainedJobs) -> None:
    create_queues(terminal)
    create_second_round(jobs)
    with changed_nodes(terminal):
        jobs.expect(SECOND_ROUND, earlier=EARLIER)
    terminal.cluster.kubectl("delete", "jobs.batch.volcano.sh", "--all", *place_of(terminal))


def test_each_missing_part_of_a_rank_table_is_named_first(terminal: Terminal, jobs: ExplainedJobs) -> None:
    own_words = {"command": ["sh", "-c", f"echo '{WAITS}'; sleep 3600"], "args": []}
    jobs.create("tabled", npus=1, backend="volcano", script=THE_TRAINER)
    jobs.create("arriving", npus=1, backend="volcano", script=THE_TRAINER, container=own_words)
    limits = {"resources": {"limits": {RESOURCE: "1"}}}
    jobs.create("limited", backend="volcano", script=THE_TRAINER, container={**own_words, **limits})
    jobs.expect({"limited": ("rank-table", "as limits only, and ascend-operator needs requests")})
    silent = ("rank-table", "every pod has its devices, and MindCluster's controller does not write it")
    jobs.expect({"tabled": silent, "arriving": silent})
    kubectl, place = terminal.cluster.kubectl, place_of(terminal)
    data = json.dumps({"data": {"hccl.json": '{"status":"completed"}'}})
    kubectl("patch", "configmap", "rings-config-arriving", "--type=merge", "--patch", data, *place)
    jobs.expect({"arriving": ("rank-table", "is complete, and has not reached the pods yet")}, state="written")
    pod, table = "pod/tabled-worker-0", "configmap/rings-config-tabled"
    devices = json.loads(terminal.pods("tabled")[0]["metadata"]["annotations"][CONFIGURATION])
    for device in devices["devices"]:
        device["device_ip"] = "-1"
    for state, words, text in (
        # As the device plugin writes it if a network port has no address.
        (
            "no-address",
            ("annotate", pod, "--overwrite", f"{CONFIGURATION}={json.dumps(devices)}"),
            "an NPU of pod tabled-worker-0 has no address (-1)",
        ),
        (
            "no-devices",
            ("annotate", pod, f"{CONFIGURATION}-"),
            "MindCluster's device plugin has not written the devices of 1 of 1 pods",
        ),
        (
            "no-label",
            ("label", "jobs.batch.volcano.sh/tabled", f"{RING_CONTROLLER}-"),
            f"the job has no label {RING_CONTROLLER}",
        ),
        ("immutable", ("patch", table, "--type=merge", "--patch", '{"immutable": true}'), "is immutable"),
        ("no-table", ("delete", table), "its ConfigMap rings-config-tabled does not exist"),
    ):
        kubectl(*words, *place)
        jobs.expect({"tabled": ("rank-table", text)}, state=state)
    kubectl("delete", "jobs.batch.volcano.sh", "tabled", "arriving", "limited", *place)


def test_ill_npus_and_silent_parts_of_volcano_are_named_first(
    terminal: Terminal, jobs: ExplainedJobs, volcano: Volcano
) -> None:
    jobs.create("ill", npus=8)
    volcano.stop(SCHEDULER)
    try:
        jobs.create("unattended", npus=1, backend="volcano")
        until(lambda: has_pod_group(terminal, "unattended"))
        volcano.stop(CONTROLLER)
        jobs.create("uncontrolled", npus=1, backend="volcano")
        with unhealthy_chips(terminal):
            jobs.expect({"ill": ("unhealthy-npu", f"node1 has only 7 of 8 {RESOURCE} healthy")})
        jobs.expect(
            {
                "unattended": ("controller", "Volcano's scheduler has not looked at it"),
                "uncontrolled": ("controller", "Volcano's controller has not looked at it"),
            }
        )
    finally:
        volcano.start(SCHEDULER)
        volcano.start(CONTROLLER)


QUEUES: dict[str, dict[str, str]] = {
    "pnas-tiny": {RESOURCE: "4"},
    "pnas-filled": {RESOURCE: "1"},
    "pnas-gone": {},
    "pnas-closing": {},
}


def create_queues(terminal: Terminal) -> None:
    """Create queues of Volcano: two small ones, one that will be deleted, and one that will be closed."""
    version, kubectl = "scheduling.volcano.sh/v1beta1", terminal.cluster.kubectl
    kubectl("delete", "queues.scheduling.volcano.sh", "--ignore-not-found", *QUEUES)
    for name, capability in QUEUES.items():
        body = {"apiVersion": version, "kind": "Queue", "metadata": {"name": name}}
        terminal.cluster.create({**body, "spec": {"weight": 1, "capability": capability}})
    until(lambda: all(state == "Open" for state in _queue_states(terminal)))


def _queue_states(terminal: Terminal) -> list[str]:
    queues = terminal.cluster.get("queues.scheduling.volcano.sh")["items"]
    return [(queue.get("status") or {}).get("state", "") for queue in queues]


def has_pod_group(terminal: Terminal, job: str) -> bool:
    """Return whether Volcano's controller has seen a job."""
    groups = terminal.cluster.get("podgroups.scheduling.volcano.sh", *place_of(terminal))["items"]
    return any(group["metadata"]["name"].startswith(f"{job}-") for group in groups)


def create_second_round(jobs: ExplainedJobs) -> None:
    """Create the jobs of Volcano and of changed nodes."""
    terminal = jobs.terminal
    jobs.create("inside", npus=1, backend="volcano", job={"queue": "pnas-filled"})
    jobs.create("tiny", npus=8, backend="volcano", job={"queue": "pnas-tiny"})
    jobs.create("closed", npus=8, backend="volcano", job={"queue": "pnas-closing"})
    jobs.create("gone", npus=8, backend="volcano", job={"queue": "pnas-gone"})
    jobs.create("gang", npus=2, backend="volcano", pod=alone("gang"), nodes=3)
    jobs.create("barred", backend="volcano", pod={"hostNetwork": True})
    jobs.create("reported", npus=8, backend="volcano")
    jobs.until_started("inside")
    jobs.create("full", npus=1, backend="volcano", job={"queue": "pnas-filled"})
    jobs.create("tainted", npus=8, node=1)
    jobs.create("cordoned", npus=8, node=2)
    until(lambda: has_pod_group(terminal, "gone"))


@contextmanager
def changed_nodes(terminal: Terminal) -> Iterator[None]:
    """Taint the first node, cordon the second one, close and delete a queue, and let MindCluster report a job."""
    kubectl, place = terminal.cluster.kubectl, place_of(terminal)
    uid = terminal.cluster.get("jobs.batch.volcano.sh", "reported", *place)["metadata"]["uid"]
    message = "NPUResourceShortage: task requires 8 NPU cards but node idle is 4"
    report = {"jobName": "reported", "conditions": {"reason": "NodePredicateFailed", "message": message}}
    metadata = {"name": "scheduling-exception-report", "namespace": "cluster-system"}
    data = {f"reported.{uid}": json.dumps(report)}
    terminal.cluster.create(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "cluster-system"}},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data},
        closing(terminal, "pnas-closing"),
    )
    kubectl("delete", "queues.scheduling.volcano.sh", "pnas-gone")
    kubectl("taint", "node", "node1", "npu=busy:NoSchedule")
    kubectl("cordon", "node2")
    try:
        yield
    finally:
        kubectl("taint", "node", "node1", "npu-")
        kubectl("uncordon", "node2")
        kubectl("delete", "namespace", "cluster-system", "--wait=false")


SECOND_ROUND = {
    "tainted": ("taint", "node1 is tainted npu=busy:NoSchedule, and takes no pod of the job"),
    "cordoned": ("cordoned", "node2 is cordoned"),
    "tiny": ("queue", "the queue's capability is 4"),
    "full": ("queue", "queue pnas-filled has no room for the job now: queue resource quota insufficient"),
    "closed": ("queue", " and takes no jobs"),
    "gone": ("queue", "--queue pnas-gone: there is no such queue"),
    "gang": ("gang-too-large", "the job needs room for 3 pods"),
    "barred": ("no-pods", "Volcano has admitted it, and has made no pods"),
    "reported": ("mindcluster", "MindCluster's scheduler finds too few free NPUs"),
}
