"""STANDS IN for vc-scheduler: once a second it admits PodGroups, places all of a gang or none, and says why."""

import sys
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from tests.cluster.testbed.api import ApiError
from tests.cluster.testbed.volcano import quantities
from tests.cluster.testbed.volcano.client import GROUPS, PODS, QUEUES, Client, Json, path, tolerating
from tests.cluster.testbed.volcano.controller.objects import GROUP
from tests.cluster.testbed.volcano.events import Recorder, now
from tests.cluster.testbed.volcano.quantities import Amounts
from tests.cluster.testbed.volcano.scheduler import placement, pod_group_status
from tests.cluster.testbed.volcano.scheduler.placement import Fit, Room

COMPONENT = "volcano"
CYCLE_S = 1.0
OVERCOMMIT = Fraction(12, 10)
"""How much more than there is may be asked for by the groups that are admitted; the plugin's default."""
ROOT, DEFAULT = "root", "default"


def run(kubeconfig: Path) -> None:
    """Act for ever."""
    scheduler = Scheduler(Client(kubeconfig))
    while True:
        began = time.monotonic()
        try:
            scheduler.cycle()
        except ApiError as error:
            sys.stderr.write(f"{error}\n")
        time.sleep(max(0.0, CYCLE_S - (time.monotonic() - began)))


class Scheduler:
    """The acts of a cycle."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._recorder = Recorder(client, COMPONENT)

    def cycle(self) -> None:
        """One session: admit, place, and write how each group stands.

        Raises:
            ApiError: something cannot be read.
        """
        queues = self._queues()
        ours = self._client.namespaces()
        pods, nodes = self._client.items(PODS), self._client.get("/api/v1/nodes")["items"]
        found = [group for group in self._client.items(GROUPS) if group["metadata"]["namespace"] in ours]
        groups = sorted(found, key=lambda one: (one["metadata"]["creationTimestamp"], one["metadata"]["name"]))
        members = {group["metadata"]["uid"]: _members(group, pods) for group in groups}
        before = {group["metadata"]["uid"]: repr(group.get("status")) for group in groups}
        places = placement.rooms(nodes, pods)
        refused = self._admit(groups, members, queues, nodes, pods)
        for group in groups:
            uid = group["metadata"]["uid"]
            with tolerating(403, 404, 409):
                places = self._session(group, members[uid], places, before[uid], admitted=uid not in refused)
        self._write_allocated(queues, groups, members)

    def _queues(self) -> dict[str, Json]:
        """All of them; without the two that are always there, which are made, nothing can be submitted."""
        found = {queue["metadata"]["name"]: queue for queue in self._client.items(QUEUES)}
        for name in (ROOT, DEFAULT):
            if name not in found:
                spec: Json = {"weight": 1, "reclaimable": name != ROOT} | ({"parent": ROOT} if name != ROOT else {})
                body = {"apiVersion": "scheduling.volcano.sh/v1beta1", "kind": "Queue", "metadata": {"name": name}}
                with tolerating(409):
                    found[name] = self._client.create(path(QUEUES), body | {"spec": spec})
        return found

    def _admit(
        self,
        groups: Sequence[Json],
        members: dict[str, list[Json]],
        queues: dict[str, Json],
        nodes: Sequence[Json],
        pods: Sequence[Json],
    ) -> set[str]:
        """Let groups into the queue for which there will be room, so that pods are made; the uids of the others."""
        total = quantities.added(*(quantities.parsed(node["status"].get("allocatable")) for node in nodes))
        used = quantities.added(*(_taken(pod) for pod in pods if pod["spec"].get("nodeName")))
        inqueue = [group for group in groups if group.get("status", {}).get("phase") == "Inqueue"]
        promised = {group["metadata"]["uid"]: _promised(group, members) for group in inqueue}
        refused: set[str] = set()
        for group in groups:
            status = group.setdefault("status", {})
            if status.get("phase", "") not in {"", "Pending"}:
                continue
            name = group["spec"].get("queue", DEFAULT)
            least = _least(group)
            in_queue = [one for one in groups if one["spec"].get("queue", DEFAULT) == name]
            of_queue = [_bound(members[one["metadata"]["uid"]]) for one in in_queue]
            of_queue += [promised[one["metadata"]["uid"]] for one in in_queue if one["metadata"]["uid"] in promised]
            capability = quantities.parsed(queues.get(name, {}).get("spec", {}).get("capability"))
            limited = {key: value for key, value in quantities.added(least, *of_queue).items() if key in capability}
            short = quantities.exceeding(limited, capability)
            asked = quantities.added(least, used, *promised.values())
            over = [key for key in quantities.exceeding(asked, quantities.times(total, OVERCOMMIT)) if key in least]
            if short or over:
                refused.add(group["metadata"]["uid"])
                status["phase"] = "Pending"
                said = f"resource in cluster is overused: overused {', '.join(over)}"
                if short:
                    said = f"queue resource quota insufficient: insufficient {', '.join(short)}"
                self._recorder.event("PodGroup", group, "Unschedulable", said)
            else:
                status["phase"] = "Inqueue"
                promised[group["metadata"]["uid"]] = _promised(group, members)
        return refused

    def _session(
        self, group: Json, pods: Sequence[Json], places: list[Room], before: str, *, admitted: bool
    ) -> list[Room]:
        """Place a group's pods and write how it stands; the rooms that are left."""
        found = placement.fit(group, pods, places if admitted else [])
        waiting = [pod for pod in pods if placement.waits(pod)]
        said = placement.described(group, pods, found)
        short = (
            bool(pods) and not found.ready and len(pod_group_status.placed(pods)) < group["spec"].get("minMember", 0)
        )
        if found.ready and found.places:
            for pod, node in found.places:
                self._bind(pod, node)
            places = _with(places, found)
            pod_group_status.condition(group, "Scheduled", "tasks in gang are ready to be scheduled", "")
        elif short:
            lacking = group["spec"].get("minMember", 0) - found.ready_number
            message = f"{lacking}/{len(pods)} {placement.NOT_ENOUGH}: {said}"
            pod_group_status.condition(group, "Unschedulable", "NotEnoughResources", message)
        pod_group_status.follow(group, pods, short=short)
        changed = before != repr(group["status"])
        metadata = group["metadata"]
        if changed:
            # Where somebody has just written it, the next cycle writes; what is told does not depend on that.
            with tolerating(409):
                self._client.replace(path(GROUPS, metadata["namespace"], metadata["name"]), group)
        pending = len(found.misfits) if found.ready else len(waiting)
        self._tell(group, f"{pending}/{len(pods)} {placement.NOT_ENOUGH}: {said}", changed=changed)
        self._tell_pods(found, said.partition(". Origin reason is ")[0])
        return places

    def _tell(self, group: Json, said: str, *, changed: bool) -> None:
        """A group that is not running is told of as unschedulable every second, even while all is well."""
        if group["status"]["phase"] in {"Unknown", "Pending", "Inqueue"}:
            self._recorder.event("PodGroup", group, "Unschedulable", said, warning=True)
        elif changed:
            self._recorder.event("PodGroup", group, "Scheduled", "pod group is ready")

    def _tell_pods(self, found: Fit, said: str) -> None:
        able = () if found.ready else found.places
        for pod, node in able:
            name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
            message = f"Pod {name} can possibly be assigned to {node}, once minAvailable is satisfied"
            self._refuse(pod, "Schedulable", message)
        for pod, why in found.misfits:
            self._refuse(pod, "Unschedulable", why or said)

    def _refuse(self, pod: Json, reason: str, message: str) -> None:
        condition = {"type": "PodScheduled", "status": "False", "reason": reason, "message": message}
        if any(condition.items() <= one.items() for one in pod["status"].get("conditions", ())):
            return
        metadata = pod["metadata"]
        where = path(PODS, metadata["namespace"], metadata["name"], "status")
        with tolerating(404):
            self._client.merge_conditions(
                where, {"status": {"conditions": [condition | {"lastTransitionTime": now()}]}}
            )
        self._recorder.event("Pod", pod, "FailedScheduling", message, warning=True)

    def _bind(self, pod: Json, node: str) -> None:
        metadata = pod["metadata"]
        body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": metadata["name"], "uid": metadata["uid"]}}
        target = {"target": {"apiVersion": "v1", "kind": "Node", "name": node}}
        with tolerating(404, 409):
            self._client.create(path(PODS, metadata["namespace"], metadata["name"], "binding"), body | target)
            said = f"Successfully assigned {metadata['namespace']}/{metadata['name']} to {node}"
            self._recorder.event("Pod", pod, "Scheduled", said)

    def _write_allocated(self, queues: dict[str, Json], groups: Sequence[Json], members: dict[str, list[Json]]) -> None:
        for name, queue in queues.items():
            own = [members[one["metadata"]["uid"]] for one in groups if one["spec"].get("queue", DEFAULT) == name]
            held = quantities.parsed({"cpu": 0, "memory": 0})
            held = quantities.added(held, *(_bound(pods) for pods in own))
            allocated = {key: quantities.written(value, resource=key) for key, value in held.items()}
            if queue.get("status", {}).get("allocated") != allocated:
                # Null takes out what a merge would leave.
                gone = dict.fromkeys(queue.get("status", {}).get("allocated", {}).keys() - allocated.keys())
                where = path(QUEUES, None, name, "status")
                with tolerating(404):
                    self._client.merge(where, {"status": {"allocated": allocated | gone, "reservation": {}}})


def _members(group: Json, pods: Sequence[Json]) -> list[Json]:
    metadata = group["metadata"]
    return [
        pod
        for pod in pods
        if pod["metadata"]["namespace"] == metadata["namespace"]
        and pod["metadata"].get("annotations", {}).get(GROUP) == metadata["name"]
    ]


def _taken(pod: Json) -> Amounts:
    """What a pod holds on its node."""
    if not placement.holds(pod):
        return {}
    return quantities.added(quantities.asked(pod["spec"]), quantities.parsed({"pods": 1}))


def _bound(pods: Sequence[Json]) -> Amounts:
    return quantities.added(*(_taken(pod) for pod in pods if pod["spec"].get("nodeName")))


def _least(group: Json) -> Amounts:
    """What a group asks for at least, without the names that only quotas know."""
    wanted = quantities.parsed(group["spec"].get("minResources"))
    return {name: value for name, value in wanted.items() if name in {"cpu", "memory"} or _extended(name)}


def _extended(name: str) -> bool:
    return "/" in name and not name.startswith(("requests.", "limits.", "count/"))


def _promised(group: Json, members: dict[str, list[Json]]) -> Amounts:
    """What an admitted group will still take."""
    have = _bound(members[group["metadata"]["uid"]])
    left = quantities.without(_least(group), [have])
    return {name: value for name, value in left.items() if value > 0}


def _with(places: list[Room], found: Fit) -> list[Room]:
    """The rooms after the group has moved in."""
    return [
        Room(
            room.node,
            quantities.without(
                room.free, [_taken(pod) for pod, node in found.places if node == room.node["metadata"]["name"]]
            ),
        )
        for room in places
    ]
