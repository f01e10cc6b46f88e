"""What is known of a container, and what that means for the log of one of its instances.

A stream's end says nothing: it ends as cleanly when a kubelet or a proxy restarts. Only the pod's status says whether
a container runs, and which instance a request for its log would be answered with. Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any

_STATUSES = ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses")


@dataclass(frozen=True, slots=True)
class Instance:
    """One run of one container. A pod made anew under the same name is another pod, and has another uid."""

    namespace: str
    pod: str
    pod_uid: str
    container: str
    restart_count: int = 0

    @property
    def path(self) -> str:
        """Its log's resource."""
        return f"/api/v1/namespaces/{self.namespace}/pods/{self.pod}/log"


@dataclass(frozen=True, slots=True)
class Termination:
    """How an instance ended. `finished_at` is in seconds since 1970, whole ones, by the node's clock."""

    finished_at: float | None = None
    container_id: str | None = None


@dataclass(frozen=True, slots=True)
class ContainerState:
    """A container as its pod's status has it.

    Attributes:
        scheduled: a node has been assigned; until then a log request is answered with an empty log.
        container_id, restart_count: of the instance that runs, ran last, or is just being made.
        terminated: how that one ended.
        previous: how the one before ended; while the container waits for its restart, how the latest did.
        may_restart: the pod's restart policy is not `Never`.
        pod_ended: the pod's phase is `Succeeded` or `Failed`; nothing starts any more.
        gone: the pod has been deleted; the rest is as it was last.
        unseen: it has vanished while nobody could look, and may have been more than the rest says.
    """

    pod_uid: str
    scheduled: bool = False
    running: bool = False
    container_id: str | None = None
    restart_count: int = 0
    terminated: Termination | None = None
    previous: Termination | None = None
    may_restart: bool = True
    pod_ended: bool = False
    gone: bool = False
    unseen: bool = False

    @property
    def end(self) -> Termination | None:
        """How the latest instance ended, if it did."""
        waits = self.previous is not None and self.previous.container_id == self.container_id
        return self.previous if waits and not self.running else self.terminated


class Place(Enum):
    """Where an instance's log is to be had."""

    AHEAD = "the instance has not started"
    RUNNING = "it runs"
    ENDED = "it has ended, and its log is the container's current one"
    PREVIOUS = "it has ended, and its log is the container's previous one"
    OVERWRITTEN = "a kubelet keeps one previous instance's log only, and it is another's"
    NEVER = "the pod ended before it started"
    GONE = "the pod was deleted"


def place_of(instance: Instance, state: ContainerState) -> Place:
    """Where `instance`'s log is, while its container is in `state`."""
    later = state.restart_count - instance.restart_count
    if state.gone or state.pod_uid != instance.pod_uid:
        place = Place.GONE
    elif later > 1:
        place = Place.OVERWRITTEN
    elif later == 1:
        place = Place.PREVIOUS
    elif later == 0 and state.running:
        place = Place.RUNNING
    elif later == 0 and state.end is not None:
        place = Place.ENDED
    else:
        place = Place.NEVER if state.pod_ended else Place.AHEAD
    return place


def may_have_begun(instance: Instance, state: ContainerState) -> bool:
    """Whether `instance` has started, by all that is known; of a pod that vanished unseen, whether it can have."""
    if state.pod_uid != instance.pod_uid:
        return False
    latest = state.restart_count - instance.restart_count
    begun = latest > 0 or (latest == 0 and (state.running or state.end is not None))
    return begun or (state.gone and state.unseen and state.scheduled)


def end_of(instance: Instance, state: ContainerState) -> Termination | None:
    """How `instance` ended, if `state` still tells."""
    place = place_of(instance, state)
    if place is Place.ENDED:
        return state.end
    return state.previous if place is Place.PREVIOUS else None


def container_state(pod: Mapping[str, Any], container: str) -> ContainerState:
    """The state of a pod's container, init and ephemeral ones included, from the pod as the API server gives it."""
    metadata, spec, status = pod["metadata"], pod.get("spec", {}), pod.get("status", {})
    statuses = (one for kind in _STATUSES for one in status.get(kind) or ())
    mine: Mapping[str, Any] = next((one for one in statuses if one["name"] == container), {})
    state = mine.get("state") or {}
    return ContainerState(
        pod_uid=metadata["uid"],
        scheduled=bool(spec.get("nodeName")),
        running="running" in state,
        container_id=mine.get("containerID"),
        restart_count=mine.get("restartCount", 0),
        terminated=_termination(state),
        previous=_termination(mine.get("lastState") or {}),
        may_restart=spec.get("restartPolicy") != "Never",
        pod_ended=status.get("phase") in ("Succeeded", "Failed"),
    )


def _termination(state: Mapping[str, Any]) -> Termination | None:
    ended = state.get("terminated")
    if ended is None:
        return None
    finished = ended.get("finishedAt")
    moment = None if finished is None else datetime.fromisoformat(finished.replace("Z", "+00:00")).timestamp()
    return Termination(moment, ended.get("containerID"))
