"""The stand-in for Volcano behaves like the recorded real one, and acts only in the namespaces that carry its label.

With PNAS_TEST_VOLCANO_BIN the same tests show whether real binaries still behave as recorded.
"""

import functools
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from tests.cluster.support.terminal import own_namespace
from tests.cluster.support.volcano_scenarios import WITH_NPUS, WITHOUT_NPUS, job_of, run_scenarios
from tests.cluster.support.volcano_timelines import (
    QUIET_S,
    TIMEOUT_S,
    ClusterWatch,
    Scenario,
    Timeline,
    load_worker,
    recorded,
)
from tests.cluster.support.waiting import until as until_within
from tests.cluster.testbed.api import ApiError
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.nodes.processes import StartError
from tests.cluster.testbed.npus.device_plugin import RESOURCE
from tests.cluster.testbed.volcano.client import COMMANDS, GROUPS, JOBS, PODS, QUEUES, Client, Json, path
from tests.cluster.testbed.volcano.install import SCHEDULER, Volcano

until = functools.partial(until_within, within_s=TIMEOUT_S)

SMALL = {"apiVersion": "scheduling.volcano.sh/v1beta1", "kind": "Queue", "metadata": {"name": "small"}}
# In these scenarios, no failure or deletion comes at a moment that decides which events are written.
WITH_FIXED_EVENTS = (
    "abort",
    "big",
    "del",
    "gang",
    "gangreq",
    "name",
    "node",
    "queue",
    "rank",
    "run2",
    "same",
    "ttl",
    "two",
    "two2",
)


@pytest.fixture(scope="module")
def watch(cluster: Cluster) -> Iterator[ClusterWatch]:
    cluster_watch = ClusterWatch(cluster.kubeconfig)
    try:
        yield cluster_watch
    finally:
        cluster_watch.stop()


@pytest.fixture(scope="module")
def played(cluster: Cluster, volcano: Volcano, watch: ClusterWatch) -> Iterator[dict[str, Timeline]]:
    """Run all scenarios as recorded, with NPUs on only one node."""
    load_worker(cluster)
    second_node = cluster.nodes[1]
    with ExitStack() as stack:
        client = stack.enter_context(closing(Client(cluster.kubeconfig)))
        client.create(path(QUEUES), {**SMALL, "spec": {"weight": 1, "capability": {"cpu": "5m"}}})
        stack.callback(client.remove, path(QUEUES, None, "small"))
        second_node.make_unhealthy(set(range(8)))
        stack.callback(second_node.make_unhealthy, set())
        until(lambda: _npus(cluster) == {"node1": "8", "node2": "0"})
        scenarios: dict[str, Scenario] = {}
        for name in (*WITH_NPUS, *WITHOUT_NPUS):
            scenarios[name] = Scenario(cluster, volcano, watch, name)
            stack.callback(scenarios[name].remove)
        errors = _errors(scenarios)
        second_node.make_unhealthy(set())
        until(lambda: _npus(cluster) == {"node1": "8", "node2": "8"})
        assert not errors
        yield {name: scenario.timeline for name, scenario in scenarios.items()}


def _errors(scenarios: dict[str, Scenario]) -> dict[str, str]:
    """Return the errors by scenario."""
    errors: dict[str, str] = {}
    together = [WITH_NPUS, *({name: steps} for name, steps in WITHOUT_NPUS.items())]
    threads = [
        threading.Thread(target=lambda steps=steps: errors.update(run_scenarios(scenarios, steps)))
        for steps in together
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def _npus(cluster: Cluster) -> dict[str, str]:
    return {node["metadata"]["name"]: node["status"]["allocatable"][RESOURCE] for node in cluster.get("nodes")["items"]}


@pytest.fixture
def scenario(cluster: Cluster, volcano: Volcano, watch: ClusterWatch) -> Iterator[Scenario]:
    new_scenario = Scenario(cluster, volcano, watch, uuid.uuid4().hex[:8])
    try:
        yield new_scenario
    finally:
        new_scenario.remove()


@pytest.mark.parametrize("name", [*WITH_NPUS, *WITHOUT_NPUS])
def test_jobs_and_pods_pass_the_phases_recorded_on_a_real_volcano(played: dict[str, Timeline], name: str) -> None:
    real, replayed = recorded(name), played[name]
    assert replayed.jobs == real.jobs
    assert replayed.lives() == real.lives()


@pytest.mark.parametrize("name", WITH_FIXED_EVENTS)
def test_events_match_the_ones_recorded_on_a_real_volcano(played: dict[str, Timeline], name: str) -> None:
    # The recorded cluster had one node.
    def as_on_one_node(event: tuple[str, ...]) -> tuple[str, ...]:
        return (*event[:4], event[4].replace("0/2 nodes", "0/1 nodes").replace(": 2 node(s)", ": 1 node(s)"))

    # These pods can run on either node.
    def on_either_node(events: set[tuple[str, ...]]) -> set[tuple[str, ...]]:
        return {(*event[:4], event[4].replace("node2", "node1")) for event in events}

    # Each second the scheduler writes how far a group is. On a busy machine it sees more intermediate states, for
    # example while the pods are created; then it writes that the first pods wait for the others.
    def is_intermediate(event: tuple[str, ...]) -> bool:
        return event[3] in {"Unschedulable", "PodGroupPending"} or event[4].endswith("once minAvailable is satisfied")

    events, recorded_events = (
        on_either_node({as_on_one_node(event) for event in played[name].events}),
        recorded(name).events,
    )
    assert events >= recorded_events
    assert not [event for event in events - recorded_events if not is_intermediate(event)]


def test_after_the_last_retry_the_hosts_config_map_stays_and_the_service_goes(
    cluster: Cluster, played: dict[str, Timeline]
) -> None:
    assert played["restart"].jobs["rst"][-1] == "Failed"
    names = cluster.kubectl("get", "configmaps,services,podgroups", "--namespace=v-restart", "--output=name").split()
    assert names == ["configmap/kube-root-ca.crt", "configmap/rst-svc"]


def test_a_gang_that_does_not_fit_has_no_pod_on_any_node_and_reports_it(scenario: Scenario) -> None:
    job = job_of("gang-pending")
    (task,) = job["spec"]["tasks"]
    task["replicas"] = task["minAvailable"] = job["spec"]["minAvailable"] = 3
    scenario.create(job)
    reasons = {"gang-worker-0": "Schedulable", "gang-worker-1": "Schedulable", "gang-worker-2": "Unschedulable"}
    scenario.wait_until(
        lambda: {name: _placement(scenario, name).get("reason") for name in reasons} == reasons, "three pods wait"
    )
    message = "pod group is not ready, 3 Pending, 3 minAvailable; Pending: 1 Unschedulable, 2 Schedulable"
    assert _placement(scenario, "gang-worker-2")["message"] == message
    assert not any(scenario.last_seen(PODS, name)["spec"].get("nodeName") for name in reasons)


def _placement(scenario: Scenario, pod: str) -> Json:
    conditions = scenario.last_seen(PODS, pod).get("status", {}).get("conditions", ())
    condition: Json = next((condition for condition in conditions if condition["type"] == "PodScheduled"), {})
    return condition


def test_restart_task_recreates_the_pods_of_one_task(played: dict[str, Timeline], scenario: Scenario) -> None:
    assert played, "the nodes have the image"
    job = job_of("completejob-on-taskcompleted", "cp")
    master, worker = job["spec"]["tasks"]
    master["policies"] = [{"event": "PodFailed", "action": "RestartTask"}]
    master["template"]["spec"]["containers"][0]["env"] = [
        {"name": "SLEEP", "value": "2"},
        {"name": "EXIT", "value": "3"},
    ]
    worker["template"]["spec"]["containers"][0]["env"] = [{"name": "SLEEP", "value": "600"}]
    scenario.create(job)
    scenario.wait_for_phases("cp", "Running", "Restarting", "Pending", "Running")
    assert scenario.timeline.lives()["cp-worker-0"] == [["Pending", "Running"]]
    assert len(scenario.timeline.lives()["cp-master-0"]) == 2
    assert scenario.last_seen(JOBS, "cp")["status"]["retryCount"] == 1


def test_task_failed_is_raised_after_enough_container_restarts_of_a_task(
    played: dict[str, Timeline], scenario: Scenario
) -> None:
    assert played, "the nodes have the image"
    job = job_of("failed-after-maxretry", "rst")
    (task,) = job["spec"]["tasks"]
    task["maxRetry"] = 1
    task["template"]["spec"]["restartPolicy"] = "OnFailure"
    job["spec"]["policies"] = [{"event": "TaskFailed", "action": "TerminateJob"}]
    scenario.create(job)
    scenario.wait_for_phases("rst", "Running", "Terminating", "Terminated")


def test_an_ended_job_has_no_counts_and_no_plugin_objects(played: dict[str, Timeline], scenario: Scenario) -> None:
    assert played, "the nodes have the image"
    scenario.create(job_of("hcclrank-args", "rk"))
    scenario.wait_until(lambda: scenario.last_seen(JOBS, "rk").get("status", {}).get("running") == 3, "all run")
    for kind, name in (("configmaps", "rk-svc"), ("services", "rk"), ("networkpolicies", "rk")):
        assert scenario.client.get(path(kind, scenario.namespace, name))
    scenario.wait_until(lambda: scenario.last_seen(JOBS, "rk")["status"].get("version", 0) > 0, "it has ended")
    status = scenario.client.get(path(JOBS, scenario.namespace, "rk"))["status"]
    assert status["state"]["phase"] == "Completed"
    assert not status.keys() & {"succeeded", "running", "pending", "taskStatusCount", "controlledResources"}
    for kind, name in (("configmaps", "rk-svc"), ("services", "rk"), ("networkpolicies", "rk")):
        with pytest.raises(ApiError, match="404"):
            scenario.client.get(path(kind, scenario.namespace, name))


def test_without_the_scheduler_a_job_stays_pending_without_pods_and_events(
    volcano: Volcano, scenario: Scenario
) -> None:
    volcano.stop(SCHEDULER)
    try:
        scenario.create(job_of("gang-pending"))
        scenario.wait_for_phases("gang", "Pending")
        time.sleep(QUIET_S)
        (group,) = scenario.client.get(path(GROUPS, scenario.namespace))["items"]
        assert not group.get("status", {}).get("phase")
        assert not scenario.timeline.pods
        assert not scenario.timeline.events
    finally:
        volcano.start(SCHEDULER)
    scenario.wait_until(lambda: bool(scenario.timeline.pods), "pods come with the scheduler")


def test_a_job_in_another_namespace_is_neither_changed_nor_run(cluster: Cluster, volcano: Volcano) -> None:
    assert volcano.labels
    job = job_of("gang-pending")
    del job["spec"]["queue"], job["spec"]["minAvailable"]
    body = {"apiVersion": job["apiVersion"], "kind": "Job", "metadata": {"name": "gang"}, "spec": job["spec"]}
    with own_namespace(cluster) as name, closing(Client(cluster.kubeconfig)) as client:
        client.create(path(JOBS, name), body)
        time.sleep(QUIET_S)
        stored = client.get(path(JOBS, name, "gang"))
        assert "status" not in stored
        assert not stored["spec"].keys() & {"queue", "minAvailable"}
        assert not client.get(path(GROUPS, name))["items"]


def test_the_webhook_sets_the_defaults_of_a_job(scenario: Scenario) -> None:
    job = job_of("gang-pending")
    task = {"replicas": 2, "template": job["spec"]["tasks"][0]["template"]}
    spec = _dry_run(scenario, {"tasks": [task, task | {"replicas": 1}]})
    assert (spec["queue"], spec["schedulerName"], spec["maxRetry"], spec["minAvailable"]) == (
        "default",
        "volcano",
        3,
        3,
    )
    assert [(task_spec["name"], task_spec["minAvailable"], task_spec["maxRetry"]) for task_spec in spec["tasks"]] == [
        ("default0", 2, 3),
        ("default1", 1, 3),
    ]
    with pytest.raises(ApiError, match="404"):
        scenario.client.get(path(JOBS, scenario.namespace, "tried"))


def _dry_run(scenario: Scenario, spec: Json) -> Json:
    body = {"apiVersion": "batch.volcano.sh/v1alpha1", "kind": "Job", "metadata": {"name": "tried"}, "spec": spec}
    created: Json = scenario.client.create(path(JOBS, scenario.namespace), body, dryRun="All")["spec"]
    return created


def test_a_dry_run_is_refused_as_the_job_would_be(scenario: Scenario) -> None:
    spec = job_of("gang-pending")["spec"]
    with pytest.raises(ApiError, match=r"unable to find job queue: queue.scheduling.volcano.sh .*nowhere.* not found;"):
        _dry_run(scenario, {**spec, "queue": "nowhere"})
    with pytest.raises(ApiError, match="can not submit job to root queue;"):
        _dry_run(scenario, {**spec, "queue": "root"})
    (task,) = spec["tasks"]
    container = {key: value for key, value in task["template"]["spec"]["containers"][0].items() if key != "image"}
    broken = {**task, "template": {"spec": {**task["template"]["spec"], "containers": [container]}}}
    with pytest.raises(ApiError, match=r"spec.task\[0\].template.spec.containers\[0\].image: Required value"):
        _dry_run(scenario, {**spec, "tasks": [broken]})


def test_a_closed_queue_takes_no_jobs_until_it_is_opened(scenario: Scenario) -> None:
    name = f"q-{uuid.uuid4().hex[:8]}"
    queue = scenario.client.create(path(QUEUES), {**SMALL, "metadata": {"name": name}})
    try:
        _closed_and_opened(scenario, name, queue["metadata"]["uid"])
    finally:
        scenario.client.remove(path(QUEUES, None, name))


def _closed_and_opened(scenario: Scenario, name: str, uid: str) -> None:
    spec = job_of("gang-pending")["spec"] | {"queue": name}
    until(lambda: _in_state(scenario, name, "Open"))
    assert _dry_run(scenario, spec)["queue"] == name
    target = {"apiVersion": SMALL["apiVersion"], "kind": "Queue", "name": name, "uid": uid}
    for action, expected in (("CloseQueue", "Closed"), ("OpenQueue", "Open")):
        body = {"apiVersion": "bus.volcano.sh/v1alpha1", "kind": "Command", "metadata": {"generateName": f"{name}-"}}
        scenario.client.create(path(COMMANDS, scenario.namespace), {**body, "action": action, "target": target})
        until(functools.partial(_in_state, scenario, name, expected))
        if expected == "Closed":
            with pytest.raises(ApiError, match=f"queue with state `Open`, queue `{name}` status is `Closed`;"):
                _dry_run(scenario, spec)
    assert _dry_run(scenario, spec)["queue"] == name


def _in_state(scenario: Scenario, queue: str, state: str) -> bool:
    return bool(scenario.client.get(path(QUEUES, None, queue)).get("status", {}).get("state") == state)


def test_the_default_queue_cannot_be_deleted(cluster: Cluster, volcano: Volcano) -> None:
    assert volcano.labels
    # A cluster that does not refuse the deletion would lose its users' queue.
    cluster.inside("a queue that it may lose")
    with pytest.raises(StartError, match="`default` queue can not be deleted"):
        cluster.kubectl("delete", "queues.scheduling.volcano.sh", "default")


def test_only_replicas_and_minima_of_a_job_can_be_changed_and_its_group_follows(scenario: Scenario) -> None:
    scenario.create(job_of("gang-pending"))
    job_path = path(JOBS, scenario.namespace, "gang")
    with pytest.raises(ApiError, match="job updates may not change fields other than"):
        scenario.client.merge(job_path, {"spec": {"maxRetry": 7}})

    def minima() -> list[int]:
        return [group["spec"]["minMember"] for group in scenario.client.get(path(GROUPS, scenario.namespace))["items"]]

    until(lambda: minima() == [2])
    scenario.client.merge(job_path, {"spec": {"minAvailable": 1}})
    until(lambda: minima() == [1])


def test_unknown_fields_are_refused_by_strict_validation(scenario: Scenario) -> None:
    spec = job_of("gang-pending")["spec"] | {"maxRetries": 2}
    body = {"apiVersion": "batch.volcano.sh/v1alpha1", "kind": "Job", "metadata": {"name": "typo"}, "spec": spec}
    with pytest.raises(ApiError, match=r"strict decoding error: unknown field .*spec.maxRetries"):
        scenario.client.create(path(JOBS, scenario.namespace), body, fieldValidation="Strict")
