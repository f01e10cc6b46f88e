"""What the test bed's stand-in for Volcano decides is what a real one was recorded to decide."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cluster.testbed.volcano import admission, fitting, objects, plugins, quantities, rules, standing
from tests.cluster.testbed.volcano.controller import TRIES, retry_delay
from tests.cluster.testbed.volcano.happenings import Happenings
from tests.cluster.testbed.volcano.rules import Happening

Json = dict[str, Any]

SAMPLES = Path(__file__).parents[1] / "data" / "volcano" / "samples"
NAMES = sorted(path.stem for path in SAMPLES.glob("*.json"))
# What the API server, the scheduler and the device plugin add to a pod.
ADDED = {"creationTimestamp", "generation", "namespace", "resourceVersion", "uid", "deletionTimestamp"}
ADDED |= {"deletionGracePeriodSeconds"}


def _sample(name: str) -> dict[str, list[Json]]:
    found: dict[str, list[Json]] = json.loads((SAMPLES / f"{name}.json").read_text())
    return found


def _pods_of(job: Json, sample: dict[str, list[Json]]) -> list[Json]:
    uid = job["metadata"]["uid"]
    return [pod for pod in sample["pods"] if pod["metadata"]["ownerReferences"][0]["uid"] == uid]


def _by_name(entries: list[Json]) -> dict[str, Json]:
    return {entry["name"]: entry for entry in entries}


def _comparable(pod: Json) -> Json:
    """Without what others add, and without an order where the real one has none."""
    metadata = {key: value for key, value in pod["metadata"].items() if key not in ADDED}
    spec = pod["spec"]
    containers = [
        {
            "env": _by_name(container.get("env", [])),
            "mounts": {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts", [])},
        }
        for container in spec["containers"]
    ]
    kept = {key: spec.get(key) for key in ("hostname", "subdomain", "schedulerName", "terminationGracePeriodSeconds")}
    volumes = {volume["name"]: next(iter(volume.keys() - {"name"})) for volume in spec.get("volumes", [])}
    return {"metadata": metadata, "containers": containers, "volumes": volumes, **kept}


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_job_is_made_into_the_recorded_pods(name: str) -> None:
    sample = _sample(name)
    for job in sample["jobs"]:
        tasks = {task["name"]: task for task in job["spec"]["tasks"]}
        for pod in _pods_of(job, sample):
            annotations = pod["metadata"]["annotations"]
            # The status has gone on since the pod was made.
            then = copy.deepcopy(job)
            then["status"]["version"] = int(annotations["volcano.sh/job-version"])
            then["status"]["retryCount"] = int(annotations["volcano.sh/job-retry-count"])
            task, index = tasks[annotations["volcano.sh/task-spec"]], int(annotations["volcano.sh/task-index"])
            assert _comparable(objects.pod(then, task, index)) == _comparable(pod)


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_job_is_made_into_the_recorded_pod_group(name: str) -> None:
    sample = _sample(name)
    jobs = {objects.group_name(job): job for job in sample["jobs"]}
    for group in sample["groups"]:
        made = objects.pod_group(jobs[group["metadata"]["name"]])
        assert made["spec"] == group["spec"]
        described = {key: group["metadata"].get(key) for key in ("name", "labels", "annotations", "ownerReferences")}
        assert {key: made["metadata"].get(key) for key in described} == described


def test_the_objects_of_plugins_are_the_recorded_ones() -> None:
    kinds = {"configmaps": "ConfigMap", "networkpolicies": "NetworkPolicy", "secrets": "Secret", "services": "Service"}
    made_kinds = []
    for name in ("running", "ssh-plugin"):
        sample = _sample(name)
        recorded = {(one["kind"], one["metadata"]["name"]): one for one in sample["objects"]}
        jobs = [job for job in sample["jobs"] if ("Service", job["metadata"]["name"]) in recorded]
        for kind, made in (one for job in jobs for one in (plugins.hosts(job), *plugins.others(job)) if one):
            real = recorded[kinds[kind], made["metadata"]["name"]]
            made_kinds.append(kind)
            for part in ("data", "spec"):
                assert all(real[part][key] == value for key, value in made.get(part, {}).items())
            assert made.get("stringData", {}).keys() <= real.get("data", {}).keys()
    assert sorted(made_kinds) == ["configmaps", "configmaps", "networkpolicies", "secrets", "services", "services"]


@pytest.mark.parametrize("name", NAMES)
def test_the_counts_of_a_recorded_status_follow_from_its_pods(name: str) -> None:
    sample = _sample(name)
    for job in sample["jobs"]:
        status = job["status"]
        # Those of a Job that has been killed are dropped, and one that waits for its group counts nothing.
        if "taskStatusCount" in status:
            wanted = {key: status[key] for key in (*rules.COUNTS, "taskStatusCount") if key in status}
            assert rules.counts(_pods_of(job, sample)) == wanted


def test_a_pod_that_goes_is_counted_as_terminating_alone() -> None:
    going = _pod(0, "Running")
    going["metadata"]["deletionTimestamp"] = "2026-11-24T03:11:29Z"
    running = {"running": 1, "taskStatusCount": {"w": {"phase": {"Running": 1}}}}
    assert rules.counts([going, _pod(1, "Running")]) == {"terminating": 1, **running}


@pytest.mark.parametrize(("least", "resources"), [(0, {}), (1, ("1", "2")), (3, ("3", "6"))])
def test_a_group_asks_for_its_least_number_of_pods(least: int, resources: Any) -> None:
    container = {"resources": {"requests": {"npu.com/n": "2"}}}
    task = {"name": "w", "replicas": 3, "template": {"spec": {"containers": [container]}}}
    job = {"metadata": {"name": "j", "uid": "u"}, "spec": {"minAvailable": least, "tasks": [task]}}
    wanted = {}
    if resources:
        pods, npus = resources
        wanted = {"pods": pods, "count/pods": pods, "npu.com/n": npus, "requests.npu.com/n": npus}
    assert objects.pod_group(job)["spec"]["minResources"] == wanted


def test_a_pod_tells_its_job_s_version_and_retries_apart() -> None:
    job = _sample("restart-by-command")["jobs"][0]
    job["status"] |= {"version": 5, "retryCount": 1}
    annotations = objects.pod(job, job["spec"]["tasks"][0], 0)["metadata"]["annotations"]
    assert (annotations["volcano.sh/job-version"], annotations["volcano.sh/job-retry-count"]) == ("5", "1")


def _spec(replicas: int = 2, least: int = 2, **others: Any) -> Json:
    return {"minAvailable": least, "maxRetry": 3, "tasks": [{"name": "w", "replicas": replicas}], **others}


def _status(phase: str, **counts: int) -> Json:
    return {"state": {"phase": phase}, **counts}


@pytest.mark.parametrize(
    ("spec", "status", "phase"),
    [
        (_spec(), _status("Pending", running=1, pending=1), "Pending"),
        (_spec(), _status("Pending", running=1, succeeded=1), "Running"),
        (_spec(), _status("Pending", failed=2), "Running"),
        (_spec(least=0), _status("Pending"), "Running"),
        (_spec(), _status("Running", running=1, failed=1), "Running"),
        (_spec(), _status("Running", running=1, pending=1), "Pending"),
        (_spec(3, 1), _status("Running", running=2, pending=1), "Running"),
        (_spec(), _status("Running", succeeded=2), "Completed"),
        (_spec(), _status("Running", succeeded=1, failed=1), "Failed"),
        (_spec(2, 1), _status("Running", succeeded=1, failed=1), "Completed"),
        (_spec(minSuccess=1), _status("Running", running=1, succeeded=1), "Completed"),
        (_spec(minSuccess=2, least=1), _status("Running", failed=1, succeeded=1), "Failed"),
        (_spec(0, 0), _status("Running"), "Running"),
        (_spec(), _status("Restarting", terminating=1), "Restarting"),
        (_spec(2, 1), _status("Restarting", terminating=1), "Pending"),
        (_spec(), _status("Restarting", retryCount=2), "Pending"),
        (_spec(), _status("Restarting", retryCount=3), "Failed"),
        (_spec(), _status("Aborting", terminating=1), "Aborting"),
        (_spec(), _status("Completed"), "Completed"),
    ],
)
def test_a_job_changes_its_phase_by_its_counts(spec: Json, status: Json, phase: str) -> None:
    assert rules.next_phase(spec, status) == phase


def test_a_job_fails_if_one_task_has_too_few_successes_though_all_together_are_enough() -> None:
    tasks = [{"name": name, "replicas": 2, "minAvailable": least} for name, least in (("m", 2), ("w", 1))]
    spec: Json = {"minAvailable": 3, "maxRetry": 3, "tasks": tasks}
    status = _status("Running", succeeded=3, failed=1)
    status["taskStatusCount"] = {"m": {"phase": {"Succeeded": 1, "Failed": 1}}, "w": {"phase": {"Succeeded": 2}}}
    assert rules.next_phase(spec, status) == "Failed"
    status["taskStatusCount"] = {"m": {"phase": {"Succeeded": 2}}, "w": {"phase": {"Succeeded": 1, "Failed": 1}}}
    assert rules.next_phase(spec, status) == "Completed"


@pytest.mark.parametrize(
    ("policies", "happening", "action"),
    [
        ([{"event": "PodFailed", "action": "A"}], Happening("PodFailed", "w", 1, 3), "A"),
        ([{"event": "PodFailed", "action": "A"}], Happening("PodFailed", "w", 0, 3), None),
        ([{"event": "PodFailed", "action": "A"}], Happening("PodEvicted", "w", 1), None),
        ([{"events": ["PodEvicted", "PodFailed"], "action": "A"}], Happening("PodFailed", "w", 1, 3), "A"),
        ([{"event": "*", "action": "A"}], Happening("TaskCompleted", "w", 1), "A"),
        ([{"exitCode": 3, "action": "A"}], Happening("PodFailed", "w", 1, 3), "A"),
        ([{"exitCode": 3, "action": "A"}], Happening("PodFailed", "w", 1, 4), None),
        ([{"exitCode": 3, "action": "A"}, {"event": "*", "action": "B"}], Happening("PodFailed", "w", 1, 4), "B"),
        (
            [{"event": "PodFailed", "action": "B"}, {"exitCode": 3, "action": "A"}],
            Happening("PodFailed", "w", 1, 3),
            "B",
        ),
        # No exit code is never a match.
        ([{"action": "A"}], Happening("PodEvicted", "w", 1), None),
    ],
)
def test_the_first_policy_that_fits_says_what_is_done(
    policies: list[Json], happening: Happening, action: str | None
) -> None:
    assert rules.action(_spec(policies=policies), 1, happening) == action


def test_a_task_s_policies_come_before_the_job_s() -> None:
    spec = _spec(policies=[{"event": "PodFailed", "action": "job's"}])
    spec["tasks"][0]["policies"] = [{"event": "PodFailed", "action": "task's"}]
    assert rules.action(spec, 0, Happening("PodFailed", "w", 0)) == "task's"
    assert rules.action(spec, 0, Happening("PodFailed", "other", 0)) == "job's"


def _pod(index: int, phase: str, *, version: int = 0, uid: str = "", code: int = 0, restarts: int = 0) -> Json:
    terminated = {"state": {"terminated": {"exitCode": code}}} if code else {}
    annotations = {"volcano.sh/task-spec": "w", "volcano.sh/job-version": str(version)}
    named = {"name": f"j-w-{index}", "uid": uid or f"p{index}"}
    metadata = {**named, "annotations": annotations, "ownerReferences": [{"uid": "j"}]}
    return {
        "metadata": metadata,
        "spec": {"containers": []},
        "status": {"phase": phase, "containerStatuses": [{"restartCount": restarts, **terminated}]},
    }


def _job(version: int = 0, **others: Any) -> Json:
    spec = _spec(policies=[{"event": "*", "action": "A"}], **others)
    return {"metadata": {"uid": "j"}, "spec": spec, "status": {"version": version}}


def _found(happenings: Happenings, job: Json, *pods: Json, group: Json | None = None) -> list[Happening]:
    happenings.look(job, pods, group)
    found = []
    while (happening := happenings.wanted(job)[0]) is not None:
        found.append(happening)
    return found


def test_a_failed_pod_is_told_of_once_with_the_exit_code_of_its_first_container() -> None:
    happenings, job = Happenings(), _job()
    assert _found(happenings, job, _pod(0, "Running")) == []
    failed = Happening("PodFailed", "w", 0, 3, "j-w-0")
    assert _found(happenings, job, _pod(0, "Failed", code=3)) == [failed]
    assert _found(happenings, job, _pod(0, "Failed", code=3)) == []
    assert _found(happenings, job, _pod(0, "Failed", code=3, uid="another")) == [
        Happening("PodEvicted", "w", 0, pod="j-w-0"),
        failed,
    ]


def test_a_pod_that_goes_is_evicted_unless_the_controller_deletes_it() -> None:
    happenings, job = Happenings(), _job()
    pods = [_pod(0, "Running"), _pod(1, "Running")]
    assert _found(happenings, job, *pods) == []
    happenings.ours(pods[0])
    assert _found(happenings, job) == [Happening("PodEvicted", "w", 0, pod="j-w-1")]
    assert _found(happenings, job) == []


def test_a_pod_that_is_deleted_has_not_failed_when_its_containers_end() -> None:
    happenings, job = Happenings(), _job()
    pod = _pod(0, "Failed", code=143)
    pod["metadata"]["deletionTimestamp"] = "2026-11-24T03:11:29Z"
    assert _found(happenings, job, pod) == []


def test_what_happened_before_a_restart_moves_nothing_after_it() -> None:
    happenings = Happenings()
    done = [_pod(0, "Succeeded"), _pod(1, "Succeeded")]
    assert _found(happenings, _job(), *done) == [Happening("TaskCompleted", "w", 0)]
    assert _found(happenings, _job(), *done) == []
    assert _found(Happenings(), _job(version=1), *done) == []


def test_a_task_is_complete_when_all_of_its_pods_have_succeeded() -> None:
    assert _found(Happenings(), _job(), _pod(0, "Succeeded"), _pod(1, "Running")) == []
    assert _found(Happenings(), _job(), _pod(0, "Succeeded")) == []


def test_a_task_has_failed_when_its_containers_have_restarted_max_retry_times_in_all() -> None:
    happenings, job = Happenings(), _job()
    job["spec"]["tasks"][0]["maxRetry"] = 3
    assert _found(happenings, job, _pod(0, "Running", restarts=1), _pod(1, "Running", restarts=1)) == []
    failed = [Happening("TaskFailed", "w", 0)]
    assert _found(happenings, job, _pod(0, "Running", restarts=2), _pod(1, "Running", restarts=1)) == failed
    assert _found(happenings, job, _pod(0, "Running", restarts=2), _pod(1, "Running", restarts=1)) == []


def test_a_group_that_becomes_unknown_is_told_of_once_each_time() -> None:
    happenings, job = Happenings(), _job()
    unknown, running = ({"status": {"phase": phase}} for phase in ("Unknown", "Running"))
    assert _found(happenings, job, group=unknown) == [Happening("Unknown", "", 0)]
    assert _found(happenings, job, group=unknown) == []
    assert _found(happenings, job, group=running) == []
    assert _found(happenings, job, group=unknown) == [Happening("Unknown", "", 0)]


@pytest.mark.parametrize(("retries", "kept"), [(0, False), (1, False), (2, True), (3, True)])
def test_pods_that_have_ended_are_kept_on_the_last_try(retries: int, kept: bool) -> None:
    status = {"retryCount": retries}
    assert rules.kept(_pod(0, "Failed"), soft=False, spec=_spec(), status=status) is kept
    assert rules.kept(_pod(0, "Failed"), soft=True, spec=_spec(), status=status)
    assert not rules.kept(_pod(0, "Running"), soft=True, spec=_spec(), status=status)


def test_a_job_that_cannot_be_made_is_given_up_after_164_seconds() -> None:
    assert sum(retry_delay(number) for number in range(1, TRIES + 1)) == pytest.approx(163.8, abs=0.1)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (14.9, "14s"), (164, "2m44s"), (3600, "1h0m0s"), (3725, "1h2m5s")]
)
def test_durations_are_written_as_go_writes_them(seconds: float, text: str) -> None:
    assert rules.duration(seconds) == text


@given(st.integers(0, 10**9), st.sampled_from(["cpu", "memory", "huawei.com/Ascend910"]))
def test_an_amount_survives_being_written(thousandths: int, resource: str) -> None:
    amount = quantities.parse(f"{thousandths}m")
    assert quantities.parse(quantities.written(amount, resource=resource)) == amount


@pytest.mark.parametrize(
    ("resource", "parts", "total"),
    [
        ("cpu", ["10m", "10m"], "20m"),
        ("cpu", ["500m", "1.5"], "2"),
        ("memory", ["512Mi", "1.5Gi"], "2Gi"),
        ("memory", ["1G"], "1000000000"),
        ("huawei.com/Ascend910", ["8", "8"], "16"),
    ],
)
def test_sums_are_written_as_kubernetes_writes_them(resource: str, parts: list[str], total: str) -> None:
    amounts = quantities.added(*({resource: quantities.parse(part)} for part in parts))
    assert quantities.written(amounts[resource], resource=resource) == total


def _node(name: str = "n1", *, npus: int = 8, labels: Json | None = None, **spec: Any) -> Json:
    metadata = {"name": name, "labels": labels or {}}
    return {"metadata": metadata, "spec": spec, "status": {"allocatable": {"npu.com/n": str(npus), "pods": "110"}}}


def _waiting(index: int, npus: int = 8, **spec: Any) -> Json:
    pod = _pod(index, "Pending")
    containers = [{"resources": {"requests": {"npu.com/n": str(npus)}}}]
    pod["spec"] = {"schedulerName": "volcano", "containers": containers, **spec}
    return pod


def _group(least: int, **tasks: int) -> Json:
    return {"spec": {"minMember": least, "minTaskMember": tasks}, "status": {"phase": "Inqueue"}}


def _fit(group: Json, pods: list[Json], *nodes: Json) -> fitting.Fit:
    return fitting.fit(group, pods, fitting.rooms(nodes, pods))


def test_a_gang_is_placed_whole_or_not_at_all() -> None:
    pods = [_waiting(0), _waiting(1)]
    whole = _fit(_group(2), pods, _node("n1"), _node("n2"))
    assert whole.ready
    assert [node for _pod, node in whole.places] == ["n1", "n2"]
    half = _fit(_group(2), pods, _node("n1"))
    assert not half.ready
    said = "pod group is not ready, 2 Pending, 2 minAvailable; Pending: 1 Schedulable, 1 Unschedulable"
    assert fitting.described(_group(2), pods, half) == said


def test_more_than_the_least_number_start_as_they_fit() -> None:
    pods = [_waiting(0, 4), _waiting(1, 4), _waiting(2, 4)]
    found = _fit(_group(1), pods, _node())
    assert found.ready
    said = "pod group is ready, 1 Pending, 1 minAvailable, 2 Binding; Pending: 1 Unschedulable"
    assert fitting.described(_group(1), pods, found) == said


def test_each_task_needs_its_own_least_number() -> None:
    pods = [_waiting(0, 4), _waiting(1, 4)]
    assert not _fit(_group(2, w=1, m=1), pods, _node()).ready
    assert _fit(_group(2, w=2), pods, _node()).ready
    # Tasks that together want more than the group are not asked.
    assert _fit(_group(2, w=2, m=1), pods, _node()).ready


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_pod_that_is_over_holds_nothing(phase: str) -> None:
    over = _waiting(0, nodeName="n1")
    over["status"]["phase"] = phase
    assert _fit(_group(1), [over, _waiting(1)], _node()).places
    assert not _fit(_group(1), [_waiting(0, nodeName="n1"), _waiting(1)], _node()).places


@pytest.mark.parametrize(
    ("pod", "node", "reason"),
    [
        ({"nodeSelector": {"x": "y"}}, _node(), "didn't match Pod's node affinity/selector"),
        ({"nodeSelector": {"x": "y"}}, _node(labels={"x": "y"}), ""),
        ({}, _node(unschedulable=True), "were unschedulable"),
        ({}, _node(taints=[{"key": "k", "effect": "NoSchedule"}]), "had untolerated taint {k: }"),
        ({}, _node(taints=[{"key": "k", "effect": "PreferNoSchedule"}]), ""),
        (
            {"tolerations": [{"key": "k", "operator": "Exists"}]},
            _node(taints=[{"key": "k", "value": "v", "effect": "NoSchedule"}]),
            "",
        ),
        (
            {"tolerations": [{"key": "k", "value": "v", "effect": "NoExecute"}]},
            _node(taints=[{"key": "k", "value": "v", "effect": "NoSchedule"}]),
            "had untolerated taint {k: v}",
        ),
        (
            {"tolerations": [{"key": "k", "value": "other"}]},
            _node(taints=[{"key": "k", "value": "v", "effect": "NoSchedule"}]),
            "had untolerated taint {k: v}",
        ),
        ({"tolerations": [{"operator": "Exists"}]}, _node(taints=[{"key": "k", "effect": "NoExecute"}]), ""),
    ],
)
def test_a_node_is_refused_in_kubernetes_own_words(pod: Json, node: Json, reason: str) -> None:
    assert fitting.refusal(_waiting(0, **pod), node) == reason


@pytest.mark.parametrize(
    ("operator", "values", "labels", "fits"),
    [
        ("In", ["a", "b"], {"k": "b"}, True),
        ("In", ["a"], {}, False),
        ("NotIn", ["a"], {"k": "a"}, False),
        ("NotIn", ["a"], {}, True),
        ("Exists", [], {"k": ""}, True),
        ("Exists", [], {}, False),
        ("DoesNotExist", [], {"k": ""}, False),
        ("DoesNotExist", [], {}, True),
    ],
)
def test_node_affinity_is_heeded(operator: str, values: list[str], labels: Json, fits: bool) -> None:
    terms = [{"matchExpressions": [{"key": "k", "operator": operator, "values": values}]}]
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}
    assert bool(fitting.refusal(_waiting(0, affinity=affinity), _node(labels=labels))) is not fits


def test_only_where_no_node_may_have_a_pod_is_it_said_why() -> None:
    pods = [_waiting(0, nodeSelector={"x": "y"})]
    found = _fit(_group(1), pods, _node("n1"), _node("n2"))
    why = "0/2 nodes are unavailable: 2 node(s) didn't match Pod's node affinity/selector."
    assert fitting.described(_group(1), pods, found).endswith(f"1 Unschedulable. Origin reason is j-w-0: {why}")
    refused_by_one = _fit(_group(1), pods, _node("n1"), _node("n2", npus=4, labels={"x": "y"}))
    assert fitting.described(_group(1), pods, refused_by_one).endswith("Pending: 1 Unschedulable")
    lacking = _fit(_group(1), [_waiting(0, 16)], _node("n1"))
    assert fitting.described(_group(1), [_waiting(0, 16)], lacking).endswith("Pending: 1 Unschedulable")


@pytest.mark.parametrize(
    ("before", "least", "pods", "short", "phase"),
    [
        ("Inqueue", 2, [], False, "Inqueue"),
        ("Pending", 2, [], False, "Pending"),
        ("Inqueue", 2, ["Pending", "Pending"], False, "Running"),
        ("Running", 2, ["Running"], True, "Unknown"),
        ("Unknown", 2, ["Running"], False, "Pending"),
        ("Inqueue", 2, ["Running"], False, "Inqueue"),
        ("Running", 2, ["Running", "Failed"], True, "Unknown"),
        ("Running", 2, ["Running", "Failed"], False, "Pending"),
        ("Inqueue", 2, ["Pending"], True, "Inqueue"),
        ("Running", 2, ["Succeeded", "Running"], False, "Running"),
        ("Running", 2, ["Succeeded", "Succeeded"], False, "Completed"),
        ("Inqueue", 0, [], False, "Completed"),
    ],
)
def test_a_group_s_phase_follows_from_its_pods(
    before: str, least: int, pods: list[str], short: bool, phase: str
) -> None:
    group: Json = {"spec": {"minMember": least}, "status": {"phase": before}}
    placed = [{**_pod(index, one), "spec": {"nodeName": "n1"}} for index, one in enumerate(pods)]
    standing.follow(group, placed, short=short)
    assert group["status"]["phase"] == phase
    assert group["status"].get("running", 0) == pods.count("Running")


def test_a_pod_that_is_going_holds_its_place_in_a_group_until_it_is_gone() -> None:
    going = {**_pod(0, "Running"), "spec": {"nodeName": "n1"}}
    going["metadata"]["deletionTimestamp"] = "2026-11-24T03:11:29Z"
    assert standing.placed([going]) == [going]
    group: Json = {"spec": {"minMember": 1}, "status": {"phase": "Inqueue"}}
    standing.follow(group, [going], short=False)
    assert group["status"]["phase"] == "Running"


OPEN: Json = {"spec": {"weight": 1, "parent": "root"}, "status": {"state": "Open"}}
QUEUES = {
    "root": {"spec": {}, "status": {"state": "Open"}},
    "default": OPEN,
    "shut": {"spec": {}, "status": {"state": "Closing"}},
    "parent": {"spec": {}, "status": {"state": "Open"}},
    "child": {"spec": {"parent": "parent"}, "status": {"state": "Open"}},
}


def _submitted(name: str = "j", **changes: Any) -> Json:
    tasks = [{"replicas": 2, "template": {}}]
    return admission.defaulted_job({"metadata": {"name": name}, "spec": {"tasks": tasks, **changes}})


@pytest.mark.parametrize("name", NAMES)
def test_jobs_that_a_real_webhook_took_are_taken(name: str) -> None:
    for job in _sample(name)["jobs"]:
        queues = {**QUEUES, job["spec"]["queue"]: OPEN}
        assert admission.job_refusal(job, queues, {}) == ""
        assert admission.defaulted_job(job)["spec"] == job["spec"]


def test_no_retry_at_all_is_read_as_none_given() -> None:
    assert _submitted(maxRetry=0)["spec"]["maxRetry"] == 3
    assert _submitted(maxRetry=1)["spec"]["maxRetry"] == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks": []}, "No task specified in job spec"),
        ({"minAvailable": 3}, "job 'minAvailable' should not be greater than total replicas in tasks;"),
        ({"minAvailable": -1}, "job 'minAvailable' must be >= 0."),
        ({"maxRetry": -1}, "'maxRetry' cannot be less than zero."),
        ({"ttlSecondsAfterFinished": -1}, "'ttlSecondsAfterFinished' cannot be less than zero."),
        ({"plugins": {"none": []}}, "unable to find job plugin: none;"),
        ({"queue": "no"}, 'unable to find job queue: queue.scheduling.volcano.sh "no" not found;'),
        ({"queue": "shut"}, "can only submit job to queue with state `Open`, queue `shut` status is `Closing`;"),
        ({"queue": "parent"}, "can only submit job to leaf queue, queue `parent` has 1 child queues;"),
        (
            {"tasks": [{"name": "a", "replicas": 1, "minAvailable": 2}]},
            "'minAvailable' is greater than 'replicas' in task: a, job: j;",
        ),
        ({"tasks": [{"name": "a", "replicas": -1}], "minAvailable": 1}, "'replicas' < 0 in task: a, job: j;"),
        (
            {"tasks": [{"name": "a", "replicas": 1, "minAvailable": -1}], "minAvailable": 1},
            "'minAvailable' < 0 in task: a, job: j;",
        ),
        ({"tasks": [{"name": "a", "replicas": 1}, {"name": "a", "replicas": 1}]}, "duplicated task name a;"),
        ({"tasks": [{"name": "A", "replicas": 1}]}, "a lowercase RFC 1123 label must consist of"),
    ],
)
def test_a_job_is_refused_in_volcano_s_words(changes: Json, said: str) -> None:
    assert said in admission.job_refusal(_submitted(**changes), QUEUES, {})


def test_names_are_refused_from_which_no_pod_s_name_can_be_made() -> None:
    # With "-default0-0", which has 11 characters, 52 are 63.
    assert admission.job_refusal(_submitted("j" * 52), QUEUES, {}) == ""
    refusal = admission.job_refusal(_submitted("j" * 53), QUEUES, {})
    assert refusal == (
        f"create pod with name {'j' * 53}-default0-0 validate failed [name part must be no more than 63 characters];"
    )
    assert "create job with name" in admission.job_refusal(_submitted("j" * 64), QUEUES, {})


@pytest.mark.parametrize(
    ("policies", "said"),
    [
        ([{"event": "PodFailed", "exitCode": 1, "action": "AbortJob"}], "must not specify event and exitCode simultan"),
        ([{"action": "AbortJob"}], "either event and exitCode should be specified"),
        ([{"exitCode": 0, "action": "AbortJob"}], "0 is not a valid error code"),
        ([{"exitCode": 1, "action": "AbortJob"}] * 2, "duplicate exitCode 1"),
        ([{"event": "PodFailed", "action": "AbortJob"}] * 2, "duplicate event PodFailed  across different policy"),
        ([{"event": "Failed", "action": "AbortJob"}], 'spec.policies: Invalid value: "Failed": invalid policy event'),
        ([{"event": "PodFailed", "action": "Stop"}], 'spec.policies: Invalid value: "Stop": invalid policy action'),
        ([{"events": ["*", "PodFailed"], "action": "AbortJob"}], "if there's * here, no other policy should be here"),
    ],
)
def test_policies_are_refused_in_volcano_s_words(policies: list[Json], said: str) -> None:
    refusal = admission.job_refusal(_submitted(policies=policies), QUEUES, {})
    assert refusal.startswith("1 error occurred:\n\t* ")
    assert said in refusal
    assert "valid actions are [AbortJob RestartJob" in refusal


def test_only_what_may_change_can_be_changed() -> None:
    old = _submitted()
    new = copy.deepcopy(old)
    new["spec"] |= {"minAvailable": 1, "priorityClassName": "high"}
    new["spec"]["tasks"][0] |= {"replicas": 1, "minAvailable": 1}
    assert admission.update_refusal(old, new) == ""
    assert "may not change fields" in admission.update_refusal(old, {"spec": {**old["spec"], "queue": "other"}})
    assert "add or remove tasks" in admission.update_refusal(
        old, {"spec": {**old["spec"], "minAvailable": 0, "tasks": []}}
    )


def test_a_queue_needs_a_weight_and_a_state_that_can_be_asked_for() -> None:
    queue: Json = {"metadata": {"name": "q"}}
    made = admission.defaulted_queue(queue)
    assert made["spec"] == {"weight": 1, "reclaimable": True, "parent": "root"}
    assert admission.queue_refusal(made) == ""
    assert "must be a positive integer" in admission.queue_refusal({"spec": {"weight": -1}})
    assert "must be in [Open Closed]" in admission.queue_refusal({"spec": {"weight": 1}, "status": {"state": "x"}})


def test_a_patch_names_only_what_differs() -> None:
    before = {"spec": {"a": 1, "b": 2}}
    assert admission.patch(before, {"spec": {"a": 1, "b": 3, "c": 4}}) == [
        {"op": "add", "path": "/spec/b", "value": 3},
        {"op": "add", "path": "/spec/c", "value": 4},
    ]
    assert admission.patch({}, {"spec": {"a": 1}}) == [{"op": "add", "path": "/spec", "value": {"a": 1}}]
