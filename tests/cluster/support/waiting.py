"""Waiting for something that happens on a cluster, by looking again and again."""

import subprocess
import time
from collections.abc import Callable

from tests.cluster.testbed.cluster import Cluster


def until(
    true: Callable[[], object],
    otherwise: Callable[[], object] = lambda: "it does not come",
    *,
    within_s: float = 300,
    every_s: float = 0.5,
) -> None:
    """Come back when `true`; fail with what `otherwise` says if that takes too long."""
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(every_s)


def exit_code_of_a_deleted_pod(cluster: Cluster, *where: str) -> int:
    """Delete a pod that runs, by kubectl's words for it, and give the exit code of its first container.

    The API server forgets the pod as soon as it has ended: only a watch sees how.
    """
    shown = '{.type} {.object.status.containerStatuses[0].state.terminated.exitCode}{"\\n"}'
    watch = ["get", "pod", *where, "--watch", "--output-watch-events", f"--output=jsonpath={shown}"]
    with subprocess.Popen(cluster.command(*watch), stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline().strip() == "ADDED"
        cluster.kubectl("delete", "pod", *where, "--grace-period=60", "--wait=false")
        seen: list[str] = []
        while not seen or seen[-1].split()[0] not in {"DELETED", "ended"}:
            seen.append(watching.stdout.readline().strip() or "ended")
        watching.terminate()
    kind, code = seen[-1].split()
    assert kind == "DELETED", seen
    return int(code)
