"""A container's state, and where the log of one of its instances can be read.

The end of a stream means nothing: a stream ends in the same way when a kubelet or a proxy restarts. Only the pod's
status says whether a container runs, and which instance the server would answer a request for its log with. Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any

_STATUSES = ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses")


@dataclass(frozen=True, slots=True)
class Instance:
    """One run of one container. A pod that is created again under the same name is another pod, with another uid."""

    namespace: str
    pod: str
    pod_uid: str
    container: str
    restart_count: int = 0

    @property
    def path(self) -> str:
        """The path of its log in the API."""
        return f"/api/v1/namespaces/{self.namespace}/pods/{self.pod}/log"


@dataclass(frozen=True, slots=True)
class ContainerEnd:
    """How an instance ended. `finished_at` is in whole seconds since 1970, by the node's clock."""

    finished_at: float | None = None
    container_id: str | None = None


@dataclass(frozen=True, slots=True)
class ContainerState:
    """A container's state, from its pod's status.

    Attributes:
        scheduled: the pod has a node; until then the server answers a request for its log with an empty log.
        container_id, restart_count: of the instance that runs, ran last, or is being created.
        terminated: how that instance ended.
        previous: how the instance before it ended; while the container waits for its restart, how the latest ended.
        may_restart: the pod's restart policy is not `Never`.
        pod_ended: the pod's phase is `Succeeded` or `Failed`; nothing starts any more.
        gone: the pod was deleted; the other fields are its last known state.
        unseen: the pod was deleted during an outage, and may have got further than its last known state.
    """

    pod_uid: str
    scheduled: bool = False
    running: bool = False
    container_id: str | None = None
    restart_count: int = 0
    terminated: ContainerEnd | None = None
    previous: ContainerEnd | None = None
    may_restart: bool = True
    pod_ended: bool = False
    gone: bool = False
    unseen: bool = False

    @property
    def end(self) -> ContainerEnd | None:
        """How the latest instance ended; None while it runs."""
        waits = self.previous is not None and self.previous.container_id == self.container_id
        return self.previous if waits and not self.running else self.terminated


class LogLocation(Enum):
    """Where an instance's log can be read."""

    NOT_STARTED = "the instance has not started"
    RUNNING = "the instance runs"
    ENDED = "the instance has ended, and its log is the container's current log"
    PREVIOUS = "the instance has ended, and its log is the container's previous log"
    OVERWRITTEN = "a kubelet keeps the log of only one previous instance, which is a later one"
    NEVER_STARTED = "the pod ended before the instance started"
    DELETED = "the pod was deleted"


def locate_log(instance: Instance, state: ContainerState) -> LogLocation:
    """Return where `instance`'s log is while its container is in `state`."""
    later = state.restart_count - instance.restart_count
    if state.gone or state.pod_uid != instance.pod_uid:
        location = LogLocation.DELETED
    elif later > 1:
        location = LogLocation.OVERWRITTEN
    elif later == 1:
        location = LogLocation.PREVIOUS
    elif later == 0 and state.running:
        location = LogLocation.RUNNING
    elif later == 0 and state.end is not None:
        location = LogLocation.ENDED
    else:
        location = LogLocation.NEVER_STARTED if state.pod_ended else LogLocation.NOT_STARTED
    return location


def may_have_started(instance: Instance, state: ContainerState) -> bool:
    """Return whether `instance` has started; for a pod that was deleted during an outage, whether it can have."""
    if state.pod_uid != instance.pod_uid:
        return False
    later = state.restart_count - instance.restart_count
    started = later > 0 or (later == 0 and (state.running or state.end is not None))
    return started or (state.gone and state.unseen and state.scheduled)


def end_of(instance: Instance, state: ContainerState) -> ContainerEnd | None:
    """Return how `instance` ended; None if `state` does not say."""
    location = locate_log(instance, state)
    if location is LogLocation.ENDED:
        return state.end
    return state.previous if location is LogLocation.PREVIOUS else None


def container_state(pod: Mapping[str, Any], container: str) -> ContainerState:
    """Return the state of a pod's container from the pod as the API server gives it; any kind of container."""
    metadata, spec, status = pod["metadata"], pod.get("spec", {}), pod.get("status", {})
    statuses = (entry for kind in _STATUSES for entry in status.get(kind) or ())
    own: Mapping[str, Any] = next((entry for entry in statuses if entry["name"] == container), {})
    state = own.get("state") or {}
    return ContainerState(
        pod_uid=metadata["uid"],
        scheduled=bool(spec.get("nodeName")),
        running="running" in state,
        container_id=own.get("containerID"),
        restart_count=own.get("restartCount", 0),
        terminated=_termination(state),
        previous=_termination(own.get("lastState") or {}),
        may_restart=spec.get("restartPolicy") != "Never",
        pod_ended=status.get("phase") in ("Succeeded", "Failed"),
    )


def _termination(state: Mapping[str, Any]) -> ContainerEnd | None:
    terminated = state.get("terminated")
    if terminated is None:
        return None
    finished = terminated.get("finishedAt")
    moment = None if finished is None else datetime.fromisoformat(finished.replace("Z", "+00:00")).timestamp()
    return ContainerEnd(moment, terminated.get("containerID"))
