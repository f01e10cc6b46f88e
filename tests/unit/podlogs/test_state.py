"""Where an instance's log is to be had follows from the pod's status alone."""

from dataclasses import replace
from typing import Any

import pytest

from launcher.podlogs.state import (
    Instance,
    Place,
    Termination,
    container_state,
    end_of,
    may_have_begun,
    place_of,
)

FINISHED = {"exitCode": 3, "reason": "Error", "finishedAt": "2026-11-24T16:50:47Z", "containerID": "containerd://1"}
ENDED = {"terminated": FINISHED}
BACK_OFF = {"waiting": {"reason": "CrashLoopBackOff"}}
CREATING = {"waiting": {"reason": "ContainerCreating"}}
RUNNING = {"running": {"startedAt": "2026-11-24T16:50:47Z"}}
TERMINATION = Termination(1795539047.0, "containerd://1")


def pod(
    state: dict[str, Any] | None,
    last: dict[str, Any] | None = None,
    *,
    restarts: int = 0,
    phase: str = "Running",
    made: str = "1",
) -> dict[str, Any]:
    status = {"name": "trainer", "state": state, "lastState": last or {}, "restartCount": restarts}
    status |= {"containerID": f"containerd://{made}"}
    return {
        "metadata": {"uid": "u1"},
        "spec": {"nodeName": "node1", "restartPolicy": "OnFailure"},
        "status": {"phase": phase, "containerStatuses": [] if state is None else [status]},
    }


@pytest.mark.parametrize(
    ("status", "instance", "place"),
    [
        (pod(None, phase="Pending"), 0, Place.AHEAD),
        (pod(CREATING, phase="Pending"), 0, Place.AHEAD),
        (pod(CREATING, phase="Failed"), 0, Place.NEVER),
        (pod(RUNNING), 0, Place.RUNNING),
        (pod(ENDED), 0, Place.ENDED),
        # It waits for its restart, and still counts as the instance that has ended.
        (pod(BACK_OFF, ENDED), 0, Place.ENDED),
        # The next one has been made, but does not run yet.
        (pod(CREATING, ENDED, restarts=1, made="2"), 0, Place.PREVIOUS),
        (pod(CREATING, ENDED, restarts=1, made="2"), 1, Place.AHEAD),
        (pod(RUNNING, ENDED, restarts=1), 0, Place.PREVIOUS),
        (pod(RUNNING, ENDED, restarts=1), 1, Place.RUNNING),
        (pod(ENDED, ENDED, restarts=1), 0, Place.PREVIOUS),
        (pod(BACK_OFF, ENDED, restarts=1), 0, Place.PREVIOUS),
        (pod(RUNNING, ENDED, restarts=2), 0, Place.OVERWRITTEN),
        (pod(RUNNING), 1, Place.AHEAD),
        (pod(ENDED, phase="Failed"), 1, Place.NEVER),
    ],
)
def test_the_place_of_a_log(status: dict[str, Any], instance: int, place: Place) -> None:
    state = container_state(status, "trainer")
    assert place_of(Instance("ns", "pod", "u1", "trainer", instance), state) is place
    assert place_of(Instance("ns", "pod", "another", "trainer", instance), state) is Place.GONE
    assert place_of(Instance("ns", "pod", "u1", "trainer", instance), replace(state, gone=True)) is Place.GONE


@pytest.mark.parametrize(
    ("status", "instance", "end"),
    [
        (pod(ENDED), 0, TERMINATION),
        (pod(BACK_OFF, ENDED), 0, TERMINATION),
        (pod(RUNNING, ENDED, restarts=1), 0, TERMINATION),
        (pod(RUNNING, ENDED, restarts=1), 1, None),
        (pod(RUNNING), 0, None),
        (pod(RUNNING, ENDED, restarts=2), 0, None),
    ],
)
def test_how_an_instance_ended(status: dict[str, Any], instance: int, end: Termination | None) -> None:
    assert end_of(Instance("ns", "pod", "u1", "trainer", instance), container_state(status, "trainer")) == end


@pytest.mark.parametrize(
    ("status", "instance", "begun"),
    [
        (pod(CREATING, phase="Pending"), 0, False),
        (pod(RUNNING), 0, True),
        (pod(ENDED, phase="Failed"), 0, True),
        (pod(BACK_OFF, ENDED), 0, True),
        (pod(RUNNING), 1, False),
        (pod(CREATING, ENDED, restarts=1, made="2"), 0, True),
        (pod(CREATING, ENDED, restarts=1, made="2"), 1, False),
    ],
)
def test_what_is_lost_with_a_pod_is_what_had_begun(status: dict[str, Any], instance: int, begun: bool) -> None:
    state = replace(container_state(status, "trainer"), gone=True)
    one = Instance("ns", "pod", "u1", "trainer", instance)
    assert may_have_begun(one, state) is begun
    assert may_have_begun(one, replace(state, unseen=True)), "it was on a node, and nobody saw what became of it"
    assert may_have_begun(one, replace(state, unseen=True, scheduled=False)) is begun


def test_a_pod_that_is_new_has_no_status_at_all() -> None:
    state = container_state({"metadata": {"uid": "u1"}, "spec": {"restartPolicy": "Never"}}, "trainer")
    assert (state.scheduled, state.running, state.may_restart, state.pod_ended) == (False, False, False, False)


def test_an_init_container_is_found_too() -> None:
    status = {"initContainerStatuses": [{"name": "data", "state": RUNNING, "lastState": {}, "restartCount": 0}]}
    assert container_state({"metadata": {"uid": "u1"}, "status": status}, "data").running
