"""Wait for a change on a cluster by looking at it repeatedly."""

import subprocess
import time
from collections.abc import Callable

from tests.cluster.testbed.cluster import Cluster


def until(
    condition: Callable[[], object],
    message: Callable[[], object] = lambda: "the condition never held",
    *,
    within_s: float = 300,
    every_s: float = 0.5,
) -> None:
    """Return when `condition` holds; fail with the text of `message` if that takes too long."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, message()
        time.sleep(every_s)


def exit_code_of_a_deleted_pod(cluster: Cluster, *pod: str) -> int:
    """Delete a running pod, by kubectl's words for it, and return the exit code of its first container.

    The API server forgets the pod when the pod ends: only a watch sees the exit code.
    """
    template = '{.type} {.object.status.containerStatuses[0].state.terminated.exitCode}{"\\n"}'
    watch = ["get", "pod", *pod, "--watch", "--output-watch-events", f"--output=jsonpath={template}"]
    with subprocess.Popen(cluster.command(*watch), stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        first = watching.stdout.readline()
        assert first.strip() == "ADDED", f"kubectl printed {first!r} and ends with {watching.poll()}"
        cluster.kubectl("delete", "pod", *pod, "--grace-period=60", "--wait=false")
        changes: list[str] = []
        while not changes or changes[-1].split()[0] not in {"DELETED", "ended"}:
            changes.append(watching.stdout.readline().strip() or "ended")
        watching.terminate()
    kind, code = changes[-1].split()
    assert kind == "DELETED", changes
    return int(code)
