"""STAND-IN for vc-scheduler: once a second it admits PodGroups, places all or no pods of a gang, and reports why."""

import sys
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from tests.cluster.testbed.api import ApiError
from tests.cluster.testbed.volcano import quantities
from tests.cluster.testbed.volcano.client import GROUPS, PODS, QUEUES, Client, Json, ignoring, path
from tests.cluster.testbed.volcano.controller.objects import GROUP
from tests.cluster.testbed.volcano.events import EventRecorder, timestamp
from tests.cluster.testbed.volcano.quantities import Amounts
from tests.cluster.testbed.volcano.scheduler import placement, pod_group_status
from tests.cluster.testbed.volcano.scheduler.placement import NodeCapacity, Placement

COMPONENT = "volcano"
CYCLE_S = 1.0
OVERCOMMIT = Fraction(12, 10)
"""The ratio of the admitted groups' requests to the cluster's resources; the plugin's default."""
ROOT, DEFAULT = "root", "default"


def run(kubeconfig: Path) -> None:
    """Run cycles for ever."""
    scheduler = Scheduler(Client(kubeconfig))
    while True:
        began = time.monotonic()
        try:
            scheduler.cycle()
        except ApiError as error:
            sys.stderr.write(f"{error}\n")
        time.sleep(max(0.0, CYCLE_S - (time.monotonic() - began)))


class Scheduler:
    """The actions of a cycle."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._recorder = EventRecorder(client, COMPONENT)

    def cycle(self) -> None:
        """Run one session: admit, place, and write the status of each group.

        Raises:
            ApiError: some objects cannot be read.
        """
        queues = self._queues()
        namespaces = self._client.namespaces()
        pods, nodes = self._client.items(PODS), self._client.get("/api/v1/nodes")["items"]
        own_groups = [group for group in self._client.items(GROUPS) if group["metadata"]["namespace"] in namespaces]
        groups = sorted(
            own_groups, key=lambda group: (group["metadata"]["creationTimestamp"], group["metadata"]["name"])
        )
        members = {group["metadata"]["uid"]: _members(group, pods) for group in groups}
        old_statuses = {group["metadata"]["uid"]: repr(group.get("status")) for group in groups}
        capacities = placement.node_capacities(nodes, pods)
        refused = self._admit(groups, members, queues, nodes, pods)
        for group in groups:
            uid = group["metadata"]["uid"]
            with ignoring(403, 404, 409):
                capacities = self._session(
                    group, members[uid], capacities, old_statuses[uid], admitted=uid not in refused
                )
        self._write_allocated(queues, groups, members)

    def _queues(self) -> dict[str, Json]:
        """Return all queues; create the two standard queues if they are missing, because no Job can do without them."""
        queues = {queue["metadata"]["name"]: queue for queue in self._client.items(QUEUES)}
        for name in (ROOT, DEFAULT):
            if name not in queues:
                spec: Json = {"weight": 1, "reclaimable": name != ROOT} | ({"parent": ROOT} if name != ROOT else {})
                body = {"apiVersion": "scheduling.volcano.sh/v1beta1", "kind": "Queue", "metadata": {"name": name}}
                with ignoring(409):
                    queues[name] = self._client.create(path(QUEUES), body | {"spec": spec})
        return queues

    def _admit(
        self,
        groups: Sequence[Json],
        members: dict[str, list[Json]],
        queues: dict[str, Json],
        nodes: Sequence[Json],
        pods: Sequence[Json],
    ) -> set[str]:
        """Admit the groups for which there will be room, so that pods are created; return the uids of the others."""
        total = quantities.add(*(quantities.parse_all(node["status"].get("allocatable")) for node in nodes))
        used = quantities.add(*(_usage(pod) for pod in pods if pod["spec"].get("nodeName")))
        inqueue = [group for group in groups if group.get("status", {}).get("phase") == "Inqueue"]
        promised = {group["metadata"]["uid"]: _promised(group, members) for group in inqueue}
        refused: set[str] = set()
        for group in groups:
            status = group.setdefault("status", {})
            if status.get("phase", "") not in {"", "Pending"}:
                continue
            name = group["spec"].get("queue", DEFAULT)
            minimum = _minimum(group)
            in_queue = [
                group_in_queue for group_in_queue in groups if group_in_queue["spec"].get("queue", DEFAULT) == name
            ]
            of_queue = [_bound(members[group_in_queue["metadata"]["uid"]]) for group_in_queue in in_queue]
            of_queue += [
                promised[group_in_queue["metadata"]["uid"]]
                for group_in_queue in in_queue
                if group_in_queue["metadata"]["uid"] in promised
            ]
            capability = quantities.parse_all(queues.get(name, {}).get("spec", {}).get("capability"))
            limited = {key: value for key, value in quantities.add(minimum, *of_queue).items() if key in capability}
            insufficient = quantities.shortages(limited, capability)
            requests = quantities.add(minimum, used, *promised.values())
            overused = [
                key for key in quantities.shortages(requests, quantities.multiply(total, OVERCOMMIT)) if key in minimum
            ]
            if insufficient or overused:
                refused.add(group["metadata"]["uid"])
                status["phase"] = "Pending"
                message = f"resource in cluster is overused: overused {', '.join(overused)}"
                if insufficient:
                    message = f"queue resource quota insufficient: insufficient {', '.join(insufficient)}"
                self._recorder.event("PodGroup", group, "Unschedulable", message)
            else:
                status["phase"] = "Inqueue"
                promised[group["metadata"]["uid"]] = _promised(group, members)
        return refused

    def _session(
        self, group: Json, pods: Sequence[Json], capacities: list[NodeCapacity], before: str, *, admitted: bool
    ) -> list[NodeCapacity]:
        """Place a group's pods and write its status; return the remaining capacities."""
        result = placement.place(group, pods, capacities if admitted else [])
        waiting = [pod for pod in pods if placement.is_waiting(pod)]
        description = placement.describe(group, pods, result)
        short = (
            bool(pods)
            and not result.ready
            and len(pod_group_status.placed_pods(pods)) < group["spec"].get("minMember", 0)
        )
        if result.ready and result.places:
            for pod, node in result.places:
                self._bind(pod, node)
            capacities = _after_placement(capacities, result)
            pod_group_status.set_condition(group, "Scheduled", "tasks in gang are ready to be scheduled", "")
        elif short:
            missing = group["spec"].get("minMember", 0) - result.ready_number
            message = f"{missing}/{len(pods)} {placement.NOT_ENOUGH}: {description}"
            pod_group_status.set_condition(group, "Unschedulable", "NotEnoughResources", message)
        pod_group_status.update_status(group, pods, short=short)
        changed = before != repr(group["status"])
        metadata = group["metadata"]
        if changed:
            # After a conflict, the next cycle writes the status; the events do not depend on it.
            with ignoring(409):
                self._client.replace(path(GROUPS, metadata["namespace"], metadata["name"]), group)
        pending = len(result.misfits) if result.ready else len(waiting)
        self._report_group(group, f"{pending}/{len(pods)} {placement.NOT_ENOUGH}: {description}", changed=changed)
        self._report_pods(result, description.partition(". Origin reason is ")[0])
        return capacities

    def _report_group(self, group: Json, message: str, *, changed: bool) -> None:
        """Report a group that is not running as unschedulable every second, even if it will run."""
        if group["status"]["phase"] in {"Unknown", "Pending", "Inqueue"}:
            self._recorder.event("PodGroup", group, "Unschedulable", message, warning=True)
        elif changed:
            self._recorder.event("PodGroup", group, "Scheduled", "pod group is ready")

    def _report_pods(self, result: Placement, description: str) -> None:
        schedulable = () if result.ready else result.places
        for pod, node in schedulable:
            name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
            message = f"Pod {name} can possibly be assigned to {node}, once minAvailable is satisfied"
            self._set_unscheduled(pod, "Schedulable", message)
        for pod, why in result.misfits:
            self._set_unscheduled(pod, "Unschedulable", why or description)

    def _set_unscheduled(self, pod: Json, reason: str, message: str) -> None:
        condition = {"type": "PodScheduled", "status": "False", "reason": reason, "message": message}
        if any(condition.items() <= existing.items() for existing in pod["status"].get("conditions", ())):
            return
        metadata = pod["metadata"]
        status_path = path(PODS, metadata["namespace"], metadata["name"], "status")
        with ignoring(404):
            self._client.merge_conditions(
                status_path, {"status": {"conditions": [condition | {"lastTransitionTime": timestamp()}]}}
            )
        self._recorder.event("Pod", pod, "FailedScheduling", message, warning=True)

    def _bind(self, pod: Json, node: str) -> None:
        metadata = pod["metadata"]
        body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": metadata["name"], "uid": metadata["uid"]}}
        target = {"target": {"apiVersion": "v1", "kind": "Node", "name": node}}
        with ignoring(404, 409):
            self._client.create(path(PODS, metadata["namespace"], metadata["name"], "binding"), body | target)
            message = f"Successfully assigned {metadata['namespace']}/{metadata['name']} to {node}"
            self._recorder.event("Pod", pod, "Scheduled", message)

    def _write_allocated(self, queues: dict[str, Json], groups: Sequence[Json], members: dict[str, list[Json]]) -> None:
        for name, queue in queues.items():
            own_pods = [
                members[group["metadata"]["uid"]] for group in groups if group["spec"].get("queue", DEFAULT) == name
            ]
            held = quantities.parse_all({"cpu": 0, "memory": 0})
            held = quantities.add(held, *(_bound(pods) for pods in own_pods))
            allocated = {key: quantities.to_text(value, resource=key) for key, value in held.items()}
            if queue.get("status", {}).get("allocated") != allocated:
                # Null removes a resource that a merge would keep.
                removed = dict.fromkeys(queue.get("status", {}).get("allocated", {}).keys() - allocated.keys())
                status_path = path(QUEUES, None, name, "status")
                with ignoring(404):
                    self._client.merge(status_path, {"status": {"allocated": allocated | removed, "reservation": {}}})


def _members(group: Json, pods: Sequence[Json]) -> list[Json]:
    metadata = group["metadata"]
    return [
        pod
        for pod in pods
        if pod["metadata"]["namespace"] == metadata["namespace"]
        and pod["metadata"].get("annotations", {}).get(GROUP) == metadata["name"]
    ]


def _usage(pod: Json) -> Amounts:
    """Return the resources that a pod holds on its node."""
    if not placement.holds_resources(pod):
        return {}
    return quantities.add(quantities.requests_of(pod["spec"]), quantities.parse_all({"pods": 1}))


def _bound(pods: Sequence[Json]) -> Amounts:
    return quantities.add(*(_usage(pod) for pod in pods if pod["spec"].get("nodeName")))


def _minimum(group: Json) -> Amounts:
    """Return a group's minimum resources, without the names that only quotas use."""
    minimum = quantities.parse_all(group["spec"].get("minResources"))
    return {name: value for name, value in minimum.items() if name in {"cpu", "memory"} or _extended(name)}


def _extended(name: str) -> bool:
    return "/" in name and not name.startswith(("requests.", "limits.", "count/"))


def _promised(group: Json, members: dict[str, list[Json]]) -> Amounts:
    """Return the resources that an admitted group will still take."""
    bound = _bound(members[group["metadata"]["uid"]])
    remaining = quantities.subtract(_minimum(group), [bound])
    return {name: value for name, value in remaining.items() if value > 0}


def _after_placement(capacities: list[NodeCapacity], result: Placement) -> list[NodeCapacity]:
    """Return the capacities after the group's placement."""
    return [
        NodeCapacity(
            capacity.node,
            quantities.subtract(
                capacity.free, [_usage(pod) for pod, node in result.places if node == capacity.node["metadata"]["name"]]
            ),
        )
        for capacity in capacities
    ]
