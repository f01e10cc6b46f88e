"""The pod's status determines where an instance's log can be read."""

from dataclasses import replace
from typing import Any

import pytest

from launcher.podlogs.state import (
    ContainerEnd,
    Instance,
    LogLocation,
    container_state,
    end_of,
    locate_log,
    may_have_started,
)

FINISHED = {"exitCode": 3, "reason": "Error", "finishedAt": "2026-11-24T16:50:47Z", "containerID": "containerd://1"}
ENDED = {"terminated": FINISHED}
BACK_OFF = {"waiting": {"reason": "CrashLoopBackOff"}}
CREATING = {"waiting": {"reason": "ContainerCreating"}}
RUNNING = {"running": {"startedAt": "2026-11-24T16:50:47Z"}}
END = ContainerEnd(1795539047.0, "containerd://1")


def pod(
    state: dict[str, Any] | None,
    last: dict[str, Any] | None = None,
    *,
    restarts: int = 0,
    phase: str = "Running",
    container: str = "1",
) -> dict[str, Any]:
    status = {"name": "trainer", "state": state, "lastState": last or {}, "restartCount": restarts}
    status |= {"containerID": f"containerd://{container}"}
    return {
        "metadata": {"uid": "u1"},
        "spec": {"nodeName": "node1", "restartPolicy": "OnFailure"},
        "status": {"phase": phase, "containerStatuses": [] if state is None else [status]},
    }


@pytest.mark.parametrize(
    ("status", "instance", "location"),
    [
        (pod(None, phase="Pending"), 0, LogLocation.NOT_STARTED),
        (pod(CREATING, phase="Pending"), 0, LogLocation.NOT_STARTED),
        (pod(CREATING, phase="Failed"), 0, LogLocation.NEVER_STARTED),
        (pod(RUNNING), 0, LogLocation.RUNNING),
        (pod(ENDED), 0, LogLocation.ENDED),
        # The container waits for its restart, and still counts as the ended instance.
        (pod(BACK_OFF, ENDED), 0, LogLocation.ENDED),
        # The next instance exists, but does not run yet.
        (pod(CREATING, ENDED, restarts=1, container="2"), 0, LogLocation.PREVIOUS),
        (pod(CREATING, ENDED, restarts=1, container="2"), 1, LogLocation.NOT_STARTED),
        (pod(RUNNING, ENDED, restarts=1), 0, LogLocation.PREVIOUS),
        (pod(RUNNING, ENDED, restarts=1), 1, LogLocation.RUNNING),
        (pod(ENDED, ENDED, restarts=1), 0, LogLocation.PREVIOUS),
        (pod(BACK_OFF, ENDED, restarts=1), 0, LogLocation.PREVIOUS),
        (pod(RUNNING, ENDED, restarts=2), 0, LogLocation.OVERWRITTEN),
        (pod(RUNNING), 1, LogLocation.NOT_STARTED),
        (pod(ENDED, phase="Failed"), 1, LogLocation.NEVER_STARTED),
    ],
)
def test_where_a_log_is(status: dict[str, Any], instance: int, location: LogLocation) -> None:
    state = container_state(status, "trainer")
    assert locate_log(Instance("ns", "pod", "u1", "trainer", instance), state) is location
    assert locate_log(Instance("ns", "pod", "another", "trainer", instance), state) is LogLocation.DELETED
    assert (
        locate_log(Instance("ns", "pod", "u1", "trainer", instance), replace(state, gone=True)) is LogLocation.DELETED
    )


@pytest.mark.parametrize(
    ("status", "instance", "end"),
    [
        (pod(ENDED), 0, END),
        (pod(BACK_OFF, ENDED), 0, END),
        (pod(RUNNING, ENDED, restarts=1), 0, END),
        (pod(RUNNING, ENDED, restarts=1), 1, None),
        (pod(RUNNING), 0, None),
        (pod(RUNNING, ENDED, restarts=2), 0, None),
    ],
)
def test_how_an_instance_ended(status: dict[str, Any], instance: int, end: ContainerEnd | None) -> None:
    assert end_of(Instance("ns", "pod", "u1", "trainer", instance), container_state(status, "trainer")) == end


@pytest.mark.parametrize(
    ("status", "instance", "started"),
    [
        (pod(CREATING, phase="Pending"), 0, False),
        (pod(RUNNING), 0, True),
        (pod(ENDED, phase="Failed"), 0, True),
        (pod(BACK_OFF, ENDED), 0, True),
        (pod(RUNNING), 1, False),
        (pod(CREATING, ENDED, restarts=1, container="2"), 0, True),
        (pod(CREATING, ENDED, restarts=1, container="2"), 1, False),
    ],
)
def test_a_deleted_pod_loses_only_a_started_instance(status: dict[str, Any], instance: int, started: bool) -> None:
    state = replace(container_state(status, "trainer"), gone=True)
    lost = Instance("ns", "pod", "u1", "trainer", instance)
    assert may_have_started(lost, state) is started
    assert may_have_started(lost, replace(state, unseen=True)), "it had a node, and its end was not seen"
    assert may_have_started(lost, replace(state, unseen=True, scheduled=False)) is started


def test_a_new_pod_has_no_status_at_all() -> None:
    state = container_state({"metadata": {"uid": "u1"}, "spec": {"restartPolicy": "Never"}}, "trainer")
    assert (state.scheduled, state.running, state.may_restart, state.pod_ended) == (False, False, False, False)


def test_an_init_container_is_found_too() -> None:
    status = {"initContainerStatuses": [{"name": "data", "state": RUNNING, "lastState": {}, "restartCount": 0}]}
    assert container_state({"metadata": {"uid": "u1"}, "status": status}, "data").running
