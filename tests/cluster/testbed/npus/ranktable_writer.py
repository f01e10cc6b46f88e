"""A STAND-IN for MindCluster's ascend-operator: it fills the ConfigMap `rings-config-<job>` of Volcano Jobs.

It follows the measured behaviour of the real one (mind-cluster 22bb3d98), whose tables are in tests/data/ranktables.
ascend-operator itself needs its own kinds and images. The stand-in acts only in namespaces with LABEL. On request it is
late, wrong, or absent. The real one watches; this one looks several times a second.

Run as `python -m tests.cluster.testbed.npus.ranktable_writer SPEC`; SPEC is JSON.
"""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from tests.cluster.testbed.api import Api, ApiError
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.nodes.container_runtime import CHECKOUT
from tests.cluster.testbed.nodes.processes import Processes
from tests.cluster.testbed.npus.device_plugin import RESOURCE
from tests.cluster.testbed.npus.pod_annotations import CONFIGURATION

LABEL = "pnas.test/ranktable=true"
ATLAS, RANK_INDEX, JOB_NAME = "ring-controller.atlas", "hccl/rankIndex", "volcano.sh/job-name"
INTERVAL_S = 0.3
Fault = Literal["missing-device", "duplicate-rank", "absent"]
NAMESPACE, ACCOUNT = "kube-system", "ascend-operator"
RULES = (
    {"apiGroups": [""], "resources": ["namespaces"], "verbs": ["list"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "patch"]},
    {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "patch"]},
    {"apiGroups": ["batch.volcano.sh"], "resources": ["jobs"], "verbs": ["list"]},
)


@contextmanager
def ranktable_writer(cluster: Cluster, *, late_s: float = 0.0, fault: Fault | None = None) -> Iterator[None]:
    """Run a writer while the context lasts.

    Args:
        late_s: the time between the moment when a table could be written and its writing.
        fault: `missing-device` leaves the last device out; `duplicate-rank` gives the last device the first one's rank;
            `absent` writes no table at all.

    Raises:
        NotABedError: on another cluster the real one may be at work.
        StartError: the writer did not start.
    """
    folder = cluster.inside("a place for a stand-in of ascend-operator").folder
    spec = {"kubeconfig": str(_kubeconfig(cluster)), "late_s": late_s, "fault": fault}
    processes = Processes(folder / "logs")
    name = "ranktable-writer"
    command = [sys.executable, "-m", "tests.cluster.testbed.npus.ranktable_writer", json.dumps(spec)]
    log = folder / "logs" / f"{name}.log"
    old_size = log.stat().st_size if log.exists() else 0
    processes.start(name, command, environ={"PYTHONPATH": str(CHECKOUT)})
    try:
        processes.until(name, lambda: log.stat().st_size > old_size)
        yield
    finally:
        processes.stop_all()


def _kubeconfig(cluster: Cluster) -> Path:
    """Create a service account with only the rights that the writer needs, and write its kubeconfig."""
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": ACCOUNT}
    subject = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": NAMESPACE}
    rbac = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": ACCOUNT}}
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT, "namespace": NAMESPACE}}
    objects = [
        account,
        {**rbac, "kind": "ClusterRole", "rules": RULES},
        {**rbac, "kind": "ClusterRoleBinding", "roleRef": role, "subjects": [subject]},
    ]
    path = cluster.folder / f"{ACCOUNT}.json"
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
    cluster.kubectl("apply", "--filename", str(path))
    token = cluster.kubectl("create", "token", ACCOUNT, "--namespace", NAMESPACE, "--duration=24h").strip()
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": token}
    path = cluster.folder / f"{ACCOUNT}.kubeconfig"
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(config))
    return path


def table(pods: Sequence[Mapping[str, Any]], status: str = "completed") -> dict[str, Any]:
    """Return the table of these pods, whose annotations have devices and rank indices, in the real field order."""
    configurations = {pod["metadata"]["uid"]: json.loads(pod["metadata"]["annotations"][CONFIGURATION]) for pod in pods}
    # If each pod has its own node, the node's address is the server's id.
    by_node = len({pod["spec"]["nodeName"] for pod in pods}) == len(pods)
    servers = []
    for pod in sorted(pods, key=_index):
        configuration = configurations[pod["metadata"]["uid"]]
        host = configuration.get("host_ip", "")
        devices = configuration["devices"]
        servers.append(
            {
                "device": [
                    {
                        "device_id": device["device_id"],
                        "device_ip": device["device_ip"],
                        "rank_id": str(_index(pod) * len(devices) + position),
                    }
                    for position, device in enumerate(devices)
                ],
                "server_id": host if by_node else configuration["server_id"],
                "host_ip": host,
                "container_ip": pod["status"]["podIP"],
            }
        )
    return {"status": status, "server_list": servers, "server_count": str(len(servers)), "version": "1.0"}


def add_fault(correct_table: dict[str, Any], fault: Fault) -> None:
    """Put this fault into a table."""
    devices = correct_table["server_list"][-1]["device"]
    if fault == "missing-device":
        devices.pop()
    else:
        devices[-1]["rank_id"] = correct_table["server_list"][0]["device"][0]["rank_id"]


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Return whether the pod has an IP, and devices with addresses; an empty device address counts as one."""
    annotation = pod["metadata"].get("annotations", {}).get(CONFIGURATION)
    if annotation is None or not pod["status"].get("podIP"):
        return False
    return all(device["device_ip"] != "-1" for device in json.loads(annotation)["devices"])


def table_size(job: Mapping[str, Any]) -> int:
    """Return how many pods of a Volcano Job get a place in its table; 0 if the Job gets no table."""
    specs = [(task.get("replicas", 1), task["template"]["spec"]) for task in job["spec"]["tasks"]]
    volumes = (volume["name"] for _, spec in specs for volume in spec.get("volumes", ()))
    if ATLAS not in job["metadata"].get("labels", {}) and "ranktable" not in volumes:
        return 0
    return sum(replicas for replicas, spec in specs if _requests(spec))


def _requests(spec: Mapping[str, Any]) -> bool:
    """Return whether a container requests NPUs.

    Limits do not count: the API server copies them into a pod's requests, but not into a Job template's.
    """
    resources = (container.get("resources", {}) for container in spec["containers"])
    return any(int(resource.get("requests", {}).get(RESOURCE, 0)) for resource in resources)


def _index(pod: Mapping[str, Any]) -> int:
    return int(pod["metadata"]["annotations"][RANK_INDEX])


@dataclass
class TableState:
    """The state of a Job object while it exists.

    Attributes:
        rows: the pods of the last table, by UID, with their content of that time.
        saved: when a table was last written, in seconds since 1970; 0 before the first.
        given_up: the ConfigMap did not exist at the first look, or it cannot be written.
        ready_since: when the due table could first be written.
    """

    rows: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    status: str = ""
    saved: int = 0
    given_up: bool = False
    ready_since: float | None = None


class Writer:
    """Look at the cluster's Jobs and write the tables that are due."""

    def __init__(self, api: Api, *, late_s: float, fault: Fault | None) -> None:
        self._api = api
        self._late_s = late_s
        self._fault = fault
        self._jobs: dict[str, TableState] = {}

    def update(self) -> None:
        """Look at every Job once.

        Raises:
            ApiError: the API server does not answer, or refuses.
        """
        for namespace in self._api.get("/api/v1/namespaces", labelSelector=LABEL)["items"]:
            name = namespace["metadata"]["name"]
            jobs = self._jobs_of(name)
            if jobs:
                pods = self._api.get(f"/api/v1/namespaces/{name}/pods", labelSelector=JOB_NAME)["items"]
                for job in jobs:
                    self._update_job(job, [pod for pod in pods if _owner(pod) == job["metadata"]["uid"]])

    def _jobs_of(self, namespace: str) -> list[dict[str, Any]]:
        try:
            jobs = self._api.get(f"/apis/batch.volcano.sh/v1alpha1/namespaces/{namespace}/jobs")["items"]
        except ApiError as error:
            if error.status != 404:
                raise
            return []
        return [job for job in jobs if table_size(job)]

    def _update_job(self, job: Mapping[str, Any], pods: Sequence[dict[str, Any]]) -> None:
        state = self._jobs.setdefault(job["metadata"]["uid"], TableState())
        pods = [pod for pod in pods if _requests(pod["spec"])]
        present = {pod["metadata"]["uid"] for pod in pods}
        if state.given_up:
            return
        if state.status == "completed":
            if not state.rows.keys() <= present:
                # The old rows stay in the table.
                self._write(job, state, list(state.rows.values()), "initializing")
        elif len(pods) == table_size(job) and all(map(is_ready, pods)):
            now = time.monotonic()
            state.ready_since = state.ready_since or now
            if now - state.ready_since >= self._late_s:
                self._index_all(pods)
                self._write(job, state, pods, "completed")
        else:
            state.ready_since = None

    def _index_all(self, pods: Sequence[dict[str, Any]]) -> None:
        """Give the free indices to the pods without an index from Volcano.

        The order is arbitrary. Here the last pod comes first, so that no code relies on the other order.
        """
        taken = {_index(pod) for pod in pods if RANK_INDEX in pod["metadata"]["annotations"]}
        free = iter(sorted(set(range(len(pods))) - taken))
        for pod in sorted(pods, key=lambda pod: str(pod["metadata"]["name"]), reverse=True):
            metadata = pod["metadata"]
            if RANK_INDEX not in metadata["annotations"]:
                metadata["annotations"][RANK_INDEX] = str(next(free))
                path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
                index = {RANK_INDEX: metadata["annotations"][RANK_INDEX]}
                self._api.merge(path, {"metadata": {"uid": metadata["uid"], "annotations": index}})

    def _write(self, job: Mapping[str, Any], state: TableState, pods: Sequence[Mapping[str, Any]], status: str) -> None:
        if self._fault == "absent":
            return
        new_table = table(pods, status)
        if self._fault is not None:
            add_fault(new_table, self._fault)
        # This `version` is the time of the save before this one, not a version.
        data = {"hccl.json": json.dumps(new_table, separators=(",", ":")), "version": str(state.saved)}
        namespace, name = job["metadata"]["namespace"], job["metadata"]["name"]
        try:
            self._api.merge(f"/api/v1/namespaces/{namespace}/configmaps/rings-config-{name}", {"data": data})
        except ApiError as error:
            if error.status not in {404, 422}:
                raise
            # The writer looks for this Job's ConfigMap only once, and an immutable ConfigMap never becomes writable.
            state.given_up = True
            log_line(f"{namespace}/{name}: {error}")
            return
        log_line(f"{namespace}/{name}: {status}")
        state.rows = {pod["metadata"]["uid"]: pod for pod in pods}
        state.status, state.saved, state.ready_since = status, int(time.time()), None


def _owner(pod: Mapping[str, Any]) -> str | None:
    owners = (owner for owner in pod["metadata"].get("ownerReferences", ()) if owner.get("controller"))
    return next((str(owner["uid"]) for owner in owners), None)


def log_line(text: str) -> None:
    """Write a line of the log."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    """Look and write for ever."""
    spec = json.loads(sys.argv[1])
    writer = Writer(Api(Path(spec["kubeconfig"])), late_s=spec["late_s"], fault=spec["fault"])
    log_line("a stand-in for ascend-operator")
    while True:
        try:
            writer.update()
        except ApiError as error:
            log_line(str(error))
        time.sleep(INTERVAL_S)


if __name__ == "__main__":
    main()
