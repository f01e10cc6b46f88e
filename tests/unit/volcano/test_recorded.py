"""The test bed's stand-in for Volcano makes the same objects from a Job as the recorded ones of a real Volcano."""

import copy
from typing import Any

import pytest

from tests.cluster.testbed.volcano.controller import objects, plugins, rules
from tests.unit.volcano.objects import NAMES, Json, make_pod, pods_of, read_sample

# The API server, the scheduler and the device plugin add these fields to a pod.
ADDED = {"creationTimestamp", "generation", "namespace", "resourceVersion", "uid", "deletionTimestamp"}
ADDED |= {"deletionGracePeriodSeconds"}


def _by_name(entries: list[Json]) -> dict[str, Json]:
    return {entry["name"]: entry for entry in entries}


def _comparable(pod: Json) -> Json:
    """Return the pod without other programs' fields, and without an order where Volcano has no fixed one."""
    metadata = {key: value for key, value in pod["metadata"].items() if key not in ADDED}
    spec = pod["spec"]
    containers = [
        {
            "env": _by_name(container.get("env", [])),
            "mounts": {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts", [])},
        }
        for container in spec["containers"]
    ]
    plain = {key: spec.get(key) for key in ("hostname", "subdomain", "schedulerName", "terminationGracePeriodSeconds")}
    volumes = {volume["name"]: next(iter(volume.keys() - {"name"})) for volume in spec.get("volumes", [])}
    return {"metadata": metadata, "containers": containers, "volumes": volumes, **plain}


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_job_becomes_the_recorded_pods(name: str) -> None:
    sample = read_sample(name)
    for job in sample["jobs"]:
        tasks = {task["name"]: task for task in job["spec"]["tasks"]}
        for pod in pods_of(job, sample):
            annotations = pod["metadata"]["annotations"]
            # The Job's status has changed since the controller made the pod.
            job_then = copy.deepcopy(job)
            job_then["status"]["version"] = int(annotations["volcano.sh/job-version"])
            job_then["status"]["retryCount"] = int(annotations["volcano.sh/job-retry-count"])
            task, index = tasks[annotations["volcano.sh/task-spec"]], int(annotations["volcano.sh/task-index"])
            assert _comparable(objects.pod(job_then, task, index)) == _comparable(pod)


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_job_becomes_the_recorded_pod_group(name: str) -> None:
    sample = read_sample(name)
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
        sample = read_sample(name)
        recorded = {(item["kind"], item["metadata"]["name"]): item for item in sample["objects"]}
        jobs = [job for job in sample["jobs"] if ("Service", job["metadata"]["name"]) in recorded]
        for kind, made in (
            item for job in jobs for item in (plugins.hosts_config_map(job), *plugins.other_objects(job)) if item
        ):
            real = recorded[kinds[kind], made["metadata"]["name"]]
            made_kinds.append(kind)
            for part in ("data", "spec"):
                assert all(real[part][key] == value for key, value in made.get(part, {}).items())
            assert made.get("stringData", {}).keys() <= real.get("data", {}).keys()
    assert sorted(made_kinds) == ["configmaps", "configmaps", "networkpolicies", "secrets", "services", "services"]


@pytest.mark.parametrize("name", NAMES)
def test_the_counts_of_a_recorded_status_follow_from_its_pods(name: str) -> None:
    sample = read_sample(name)
    for job in sample["jobs"]:
        status = job["status"]
        # Volcano drops the counts of a killed Job, and has not counted for a Job that waits for its group.
        if "taskStatusCount" in status:
            counts = {key: status[key] for key in (*rules.COUNTS, "taskStatusCount") if key in status}
            assert rules.counts(pods_of(job, sample)) == counts


def test_a_deleted_pod_counts_only_as_terminating() -> None:
    deleted = make_pod(0, "Running")
    deleted["metadata"]["deletionTimestamp"] = "2026-11-24T03:11:29Z"
    running = {"running": 1, "taskStatusCount": {"w": {"phase": {"Running": 1}}}}
    assert rules.counts([deleted, make_pod(1, "Running")]) == {"terminating": 1, **running}


@pytest.mark.parametrize(("least", "resources"), [(0, {}), (1, ("1", "2")), (3, ("3", "6"))])
def test_a_group_asks_for_its_least_number_of_pods(least: int, resources: Any) -> None:
    container = {"resources": {"requests": {"npu.com/n": "2"}}}
    task = {"name": "w", "replicas": 3, "template": {"spec": {"containers": [container]}}}
    job = {"metadata": {"name": "j", "uid": "u"}, "spec": {"minAvailable": least, "tasks": [task]}}
    expected = {}
    if resources:
        pods, npus = resources
        expected = {"pods": pods, "count/pods": pods, "npu.com/n": npus, "requests.npu.com/n": npus}
    assert objects.pod_group(job)["spec"]["minResources"] == expected


def test_a_pod_has_its_job_s_version_and_retries_in_two_annotations() -> None:
    job = read_sample("restart-by-command")["jobs"][0]
    job["status"] |= {"version": 5, "retryCount": 1}
    annotations = objects.pod(job, job["spec"]["tasks"][0], 0)["metadata"]["annotations"]
    assert (annotations["volcano.sh/job-version"], annotations["volcano.sh/job-retry-count"]) == ("5", "1")
