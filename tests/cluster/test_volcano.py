"""The stand-in for Volcano does what a real one was seen to do, and touches nothing that it was not given.

With PNAS_VOLCANO_BIN the same tests tell whether real binaries still do what was recorded.
"""

import functools
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from tests.cluster.support.terminal import own_namespace
from tests.cluster.support.volcano_scenarios import WITH_NPUS, WITHOUT, job_of, play
from tests.cluster.support.volcano_timelines import PATIENCE_S, Stage, Timeline, Watch, load_worker, recorded
from tests.cluster.support.waiting import until as until_within
from tests.cluster.testbed.api import ApiError
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.nodes.processes import StartError
from tests.cluster.testbed.npus.device_plugin import RESOURCE
from tests.cluster.testbed.volcano.client import COMMANDS, GROUPS, JOBS, PODS, QUEUES, Client, Json, path
from tests.cluster.testbed.volcano.install import SCHEDULER, Volcano

until = functools.partial(until_within, within_s=PATIENCE_S)

SMALL = {"apiVersion": "scheduling.volcano.sh/v1beta1", "kind": "Queue", "metadata": {"name": "small"}}
# In these nothing fails or is deleted at a moment that decides what is told of it.
CALM = ("abort", "big", "del", "gang", "gangreq", "name", "node", "queue", "rank", "run2", "same", "ttl", "two", "two2")


@pytest.fixture(scope="module")
def watch(cluster: Cluster) -> Iterator[Watch]:
    one = Watch(cluster.kubeconfig)
    try:
        yield one
    finally:
        one.stop()


@pytest.fixture(scope="module")
def played(cluster: Cluster, volcano: Volcano, watch: Watch) -> Iterator[dict[str, Timeline]]:
    """All scenarios, with NPUs on one node alone, as they were recorded."""
    load_worker(cluster)
    other = cluster.nodes[1]
    with ExitStack() as stack:
        client = stack.enter_context(closing(Client(cluster.kubeconfig)))
        client.create(path(QUEUES), {**SMALL, "spec": {"weight": 1, "capability": {"cpu": "5m"}}})
        stack.callback(client.remove, path(QUEUES, None, "small"))
        other.make_unhealthy(set(range(8)))
        stack.callback(other.make_unhealthy, set())
        until(lambda: _npus(cluster) == {"node1": "8", "node2": "0"})
        stages: dict[str, Stage] = {}
        for name in (*WITH_NPUS, *WITHOUT):
            stages[name] = Stage(cluster, volcano, watch, name)
            stack.callback(stages[name].leave)
        wrong = _played_together(stages)
        other.make_unhealthy(set())
        until(lambda: _npus(cluster) == {"node1": "8", "node2": "8"})
        assert not wrong
        yield {name: stage.timeline for name, stage in stages.items()}


def _played_together(stages: dict[str, Stage]) -> dict[str, str]:
    """What has gone wrong."""
    wrong: dict[str, str] = {}
    together = [WITH_NPUS, *({name: scenario} for name, scenario in WITHOUT.items())]
    threads = [threading.Thread(target=lambda these=these: wrong.update(play(stages, these))) for these in together]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


def _npus(cluster: Cluster) -> dict[str, str]:
    return {node["metadata"]["name"]: node["status"]["allocatable"][RESOURCE] for node in cluster.get("nodes")["items"]}


@pytest.fixture
def stage(cluster: Cluster, volcano: Volcano, watch: Watch) -> Iterator[Stage]:
    one = Stage(cluster, volcano, watch, uuid.uuid4().hex[:8])
    try:
        yield one
    finally:
        one.leave()


@pytest.mark.parametrize("scenario", [*WITH_NPUS, *WITHOUT])
def test_jobs_and_pods_live_as_they_did_on_a_real_volcano(played: dict[str, Timeline], scenario: str) -> None:
    real, here = recorded(scenario), played[scenario]
    assert here.jobs == real.jobs
    assert here.lives() == real.lives()


@pytest.mark.parametrize("scenario", CALM)
def test_events_tell_what_they_told_on_a_real_volcano(played: dict[str, Timeline], scenario: str) -> None:
    # The recorded cluster had one node.
    def as_there(event: tuple[str, ...]) -> tuple[str, ...]:
        return (*event[:4], event[4].replace("0/2 nodes", "0/1 nodes").replace(": 2 node(s)", ": 1 node(s)"))

    # A pod of these may run on either node.
    def where(events: set[tuple[str, ...]]) -> set[tuple[str, ...]]:
        return {(*event[:4], event[4].replace("node2", "node1")) for event in events}

    # Each second it is told how far a group is: on a busy machine it is looked at in the middle of more, as while its
    # pods are made; the first of them are told then that they wait for the others.
    def in_the_middle(event: tuple[str, ...]) -> bool:
        return event[3] in {"Unschedulable", "PodGroupPending"} or event[4].endswith("once minAvailable is satisfied")

    told, there = where({as_there(event) for event in played[scenario].events}), recorded(scenario).events
    assert told >= there
    assert not [event for event in told - there if not in_the_middle(event)]


def test_after_the_last_try_the_hosts_config_map_stays_and_the_service_does_not(
    cluster: Cluster, played: dict[str, Timeline]
) -> None:
    assert played["restart"].jobs["rst"][-1] == "Failed"
    left = cluster.kubectl("get", "configmaps,services,podgroups", "--namespace=v-restart", "--output=name").split()
    assert left == ["configmap/kube-root-ca.crt", "configmap/rst-svc"]


def test_a_gang_that_does_not_fit_has_no_pod_on_any_node_and_says_so(stage: Stage) -> None:
    job = job_of("gang-pending")
    (task,) = job["spec"]["tasks"]
    task["replicas"] = task["minAvailable"] = job["spec"]["minAvailable"] = 3
    stage.create(job)
    reasons = {"gang-worker-0": "Schedulable", "gang-worker-1": "Schedulable", "gang-worker-2": "Unschedulable"}
    stage.until(lambda: {name: _placing(stage, name).get("reason") for name in reasons} == reasons, "three pods wait")
    said = "pod group is not ready, 3 Pending, 3 minAvailable; Pending: 1 Unschedulable, 2 Schedulable"
    assert _placing(stage, "gang-worker-2")["message"] == said
    assert not any(stage.seen(PODS, name)["spec"].get("nodeName") for name in reasons)


def _placing(stage: Stage, pod: str) -> Json:
    conditions = stage.seen(PODS, pod).get("status", {}).get("conditions", ())
    found: Json = next((one for one in conditions if one["type"] == "PodScheduled"), {})
    return found


def test_restart_task_makes_the_pods_of_one_task_anew(played: dict[str, Timeline], stage: Stage) -> None:
    assert played, "the nodes have the image"
    job = job_of("completejob-on-taskcompleted", "cp")
    master, worker = job["spec"]["tasks"]
    master["policies"] = [{"event": "PodFailed", "action": "RestartTask"}]
    master["template"]["spec"]["containers"][0]["env"] = [
        {"name": "SLEEP", "value": "2"},
        {"name": "EXIT", "value": "3"},
    ]
    worker["template"]["spec"]["containers"][0]["env"] = [{"name": "SLEEP", "value": "600"}]
    stage.create(job)
    stage.phase("cp", "Running", "Restarting", "Pending", "Running")
    assert stage.timeline.lives()["cp-worker-0"] == [["Pending", "Running"]]
    assert len(stage.timeline.lives()["cp-master-0"]) == 2
    assert stage.seen(JOBS, "cp")["status"]["retryCount"] == 1


def test_task_failed_is_told_when_containers_of_a_task_have_restarted_often_enough(
    played: dict[str, Timeline], stage: Stage
) -> None:
    assert played, "the nodes have the image"
    job = job_of("failed-after-maxretry", "rst")
    (task,) = job["spec"]["tasks"]
    task["maxRetry"] = 1
    task["template"]["spec"]["restartPolicy"] = "OnFailure"
    job["spec"]["policies"] = [{"event": "TaskFailed", "action": "TerminateJob"}]
    stage.create(job)
    stage.phase("rst", "Running", "Terminating", "Terminated")


def test_counts_vanish_when_a_job_has_ended_and_its_objects_go(played: dict[str, Timeline], stage: Stage) -> None:
    assert played, "the nodes have the image"
    stage.create(job_of("hcclrank-args", "rk"))
    stage.until(lambda: stage.seen(JOBS, "rk").get("status", {}).get("running") == 3, "all run")
    for kind, name in (("configmaps", "rk-svc"), ("services", "rk"), ("networkpolicies", "rk")):
        assert stage.client.get(path(kind, stage.namespace, name))
    stage.until(lambda: stage.seen(JOBS, "rk")["status"].get("version", 0) > 0, "it has ended")
    status = stage.client.get(path(JOBS, stage.namespace, "rk"))["status"]
    assert status["state"]["phase"] == "Completed"
    assert not status.keys() & {"succeeded", "running", "pending", "taskStatusCount", "controlledResources"}
    for kind, name in (("configmaps", "rk-svc"), ("services", "rk"), ("networkpolicies", "rk")):
        with pytest.raises(ApiError, match="404"):
            stage.client.get(path(kind, stage.namespace, name))


def test_without_the_scheduler_a_job_stays_pending_without_pods_and_events(volcano: Volcano, stage: Stage) -> None:
    volcano.stop(SCHEDULER)
    try:
        stage.create(job_of("gang-pending"))
        stage.phase("gang", "Pending")
        time.sleep(2.5)
        (group,) = stage.client.get(path(GROUPS, stage.namespace))["items"]
        assert not group.get("status", {}).get("phase")
        assert not stage.timeline.pods
        assert not stage.timeline.events
    finally:
        volcano.start(SCHEDULER)
    stage.until(lambda: bool(stage.timeline.pods), "pods come with the scheduler")


def test_a_job_in_another_namespace_is_neither_changed_nor_run(cluster: Cluster, volcano: Volcano) -> None:
    assert volcano.labels
    job = job_of("gang-pending")
    del job["spec"]["queue"], job["spec"]["minAvailable"]
    body = {"apiVersion": job["apiVersion"], "kind": "Job", "metadata": {"name": "gang"}, "spec": job["spec"]}
    with own_namespace(cluster) as name, closing(Client(cluster.kubeconfig)) as client:
        client.create(path(JOBS, name), body)
        time.sleep(2.5)
        found = client.get(path(JOBS, name, "gang"))
        assert "status" not in found
        assert not found["spec"].keys() & {"queue", "minAvailable"}
        assert not client.get(path(GROUPS, name))["items"]


def test_the_webhook_fills_in_what_a_job_leaves_out(stage: Stage) -> None:
    job = job_of("gang-pending")
    task = {"replicas": 2, "template": job["spec"]["tasks"][0]["template"]}
    made = _dry_run(stage, {"tasks": [task, task | {"replicas": 1}]})
    assert (made["queue"], made["schedulerName"], made["maxRetry"], made["minAvailable"]) == (
        "default",
        "volcano",
        3,
        3,
    )
    assert [(one["name"], one["minAvailable"], one["maxRetry"]) for one in made["tasks"]] == [
        ("default0", 2, 3),
        ("default1", 1, 3),
    ]
    with pytest.raises(ApiError, match="404"):
        stage.client.get(path(JOBS, stage.namespace, "tried"))


def _dry_run(stage: Stage, spec: Json) -> Json:
    body = {"apiVersion": "batch.volcano.sh/v1alpha1", "kind": "Job", "metadata": {"name": "tried"}, "spec": spec}
    made: Json = stage.client.create(path(JOBS, stage.namespace), body, dryRun="All")["spec"]
    return made


def test_a_dry_run_is_refused_as_the_job_would_be(stage: Stage) -> None:
    spec = job_of("gang-pending")["spec"]
    with pytest.raises(ApiError, match=r"unable to find job queue: queue.scheduling.volcano.sh .*nowhere.* not found;"):
        _dry_run(stage, {**spec, "queue": "nowhere"})
    with pytest.raises(ApiError, match="can not submit job to root queue;"):
        _dry_run(stage, {**spec, "queue": "root"})
    (task,) = spec["tasks"]
    container = {key: value for key, value in task["template"]["spec"]["containers"][0].items() if key != "image"}
    broken = {**task, "template": {"spec": {**task["template"]["spec"], "containers": [container]}}}
    with pytest.raises(ApiError, match=r"spec.task\[0\].template.spec.containers\[0\].image: Required value"):
        _dry_run(stage, {**spec, "tasks": [broken]})


def test_a_closed_queue_takes_no_jobs_until_it_is_opened(stage: Stage) -> None:
    name = f"q-{uuid.uuid4().hex[:8]}"
    queue = stage.client.create(path(QUEUES), {**SMALL, "metadata": {"name": name}})
    try:
        _closed_and_opened(stage, name, queue["metadata"]["uid"])
    finally:
        stage.client.remove(path(QUEUES, None, name))


def _closed_and_opened(stage: Stage, name: str, uid: str) -> None:
    spec = job_of("gang-pending")["spec"] | {"queue": name}
    until(lambda: _in_state(stage, name, "Open"))
    assert _dry_run(stage, spec)["queue"] == name
    target = {"apiVersion": SMALL["apiVersion"], "kind": "Queue", "name": name, "uid": uid}
    for action, wanted in (("CloseQueue", "Closed"), ("OpenQueue", "Open")):
        body = {"apiVersion": "bus.volcano.sh/v1alpha1", "kind": "Command", "metadata": {"generateName": f"{name}-"}}
        stage.client.create(path(COMMANDS, stage.namespace), {**body, "action": action, "target": target})
        until(functools.partial(_in_state, stage, name, wanted))
        if wanted == "Closed":
            with pytest.raises(ApiError, match=f"queue with state `Open`, queue `{name}` status is `Closed`;"):
                _dry_run(stage, spec)
    assert _dry_run(stage, spec)["queue"] == name


def _in_state(stage: Stage, queue: str, state: str) -> bool:
    return bool(stage.client.get(path(QUEUES, None, queue)).get("status", {}).get("state") == state)


def test_the_default_queue_cannot_be_deleted(cluster: Cluster, volcano: Volcano) -> None:
    assert volcano.labels
    # Where nothing refused, it would be somebody's.
    cluster.inside("a queue that it may lose")
    with pytest.raises(StartError, match="`default` queue can not be deleted"):
        cluster.kubectl("delete", "queues.scheduling.volcano.sh", "default")


def test_only_replicas_and_minima_of_a_job_can_be_changed_and_its_group_follows(stage: Stage) -> None:
    stage.create(job_of("gang-pending"))
    where = path(JOBS, stage.namespace, "gang")
    with pytest.raises(ApiError, match="job updates may not change fields other than"):
        stage.client.merge(where, {"spec": {"maxRetry": 7}})

    def minima() -> list[int]:
        return [group["spec"]["minMember"] for group in stage.client.get(path(GROUPS, stage.namespace))["items"]]

    until(lambda: minima() == [2])
    stage.client.merge(where, {"spec": {"minAvailable": 1}})
    until(lambda: minima() == [1])


def test_typos_are_refused_where_fields_are_checked(stage: Stage) -> None:
    spec = job_of("gang-pending")["spec"] | {"maxRetries": 2}
    body = {"apiVersion": "batch.volcano.sh/v1alpha1", "kind": "Job", "metadata": {"name": "typo"}, "spec": spec}
    with pytest.raises(ApiError, match=r"strict decoding error: unknown field .*spec.maxRetries"):
        stage.client.create(path(JOBS, stage.namespace), body, fieldValidation="Strict")
