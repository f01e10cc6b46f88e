"""How pods failed, in one line, from their containers and the end of their logs. Pure."""

import re
from collections.abc import Callable, Sequence

from launcher.kinds.labels import CONTAINER
from launcher.kube.api import Json
from launcher.output.lines import parse_lines
from launcher.output.progress import JobProgress
from trainer.shared.errors import FolderTakenError, UsageError

# How a container ends that the node could not start; the message then says why.
_NOT_STARTED = frozenset({"StartError", "ContainerCannotRun"})
# How the trainer ends if it refuses its settings, or its run's folder.
_REFUSALS = frozenset({UsageError.exit_code, FolderTakenError.exit_code})
_OTHER_PROCESSOR = "exec format error"
_START_HINTS = (
    (_OTHER_PROCESSOR, "the image is built for another processor than the node's: choose another --image"),
    ("executable file not found|no such file", "does the --image have the trainer, and the overlay no other command?"),
)


def container_failure(pod: Json) -> str:
    """Return how a container of the pod failed, like `exit code 137 (OOMKilled)`; empty if none failed."""
    status = pod.get("status", {})
    containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    # A container from the overlay matters only if the trainer's did not fail.
    for container in sorted(containers, key=lambda container: container["name"] != CONTAINER):
        states = (container.get("state") or {}, container.get("lastState") or {})
        ended = next((state["terminated"] for state in states if state.get("terminated")), None)
        if ended and ended.get("exitCode"):
            reason = ended.get("reason")
            name = "" if container["name"] == CONTAINER else f"container {container['name']}: "
            if reason in _NOT_STARTED:
                reason = f"{reason}: {_start_words(str(ended.get('message', '')))}"
            return f"{name}exit code {ended['exitCode']}" + (f" ({reason})" if reason not in (None, "Error") else "")
    return str(status.get("reason") or "") if status.get("phase") == "Failed" else ""


def is_refusal(pods: Sequence[Json]) -> bool:
    """Return whether the trainer of a pod ended with the exit code of a refusal."""
    containers = (item for pod in pods for item in pod.get("status", {}).get("containerStatuses") or ())
    ends = ((item.get("state") or {}).get("terminated") or {} for item in containers if item["name"] == CONTAINER)
    return any(end.get("exitCode") in _REFUSALS for end in ends)


def last_tries(failed: Sequence[Json]) -> list[Json]:
    """Return each node's last failed pod, as the others are of earlier tries; the first to end comes first."""
    of_node = {pod["spec"].get("hostname", ""): pod for pod in sorted(failed, key=_end_time)}
    return sorted(of_node.values(), key=_end_time)


def start_failure(pod: Json) -> str:
    """Return why a node could not start a container of the pod, with the next step; empty if it started all."""
    for container in pod.get("status", {}).get("containerStatuses") or ():
        ended = (container.get("state") or {}).get("terminated") or {}
        if ended.get("reason") in _NOT_STARTED:
            return _start_words(str(ended.get("message", "")))
    return ""


def first_words(
    failed: Sequence[Json], pods: Sequence[Json], log_of: Callable[[Json], bytes]
) -> tuple[str, Json | None]:
    """Return the words of the rank that failed first, and the pod whose log has them; empty if no log has any.

    The other pods lost a peer, and report that as the cause, so that the failed ones are asked first.

    Args:
        failed: the pods that failed, the first to end first.
        log_of: returns the last lines of a pod; called as often as needed.
    """
    for pod in (*failed, *(pod for pod in pods if pod not in failed)):
        if cause := JobProgress().update_all(parse_lines(log_of(pod))).cause:
            return cause, pod
    return next(((words, pod) for pod in failed if (words := log_failure(log_of(pod)))), ("", None))


def log_failure(tail: bytes) -> str:
    """Return why the system could not run the container's program, if its log says only that; empty otherwise."""
    last = tail.rstrip().rpartition(b"\n")[2].decode("utf-8", "replace")
    return f"{last}; {_START_HINTS[0][1]}" if last.endswith(_OTHER_PROCESSOR) else ""


def _start_words(message: str) -> str:
    """Return the cause in a container runtime's message, whose begin names the runtime's parts, with the next step."""
    cause = " ".join(message.split()).rpartition("unable to start container process: ")[2].removesuffix(": unknown")
    hint = next((f"; {hint}" for pattern, hint in _START_HINTS if re.search(pattern, cause)), "")
    return f"{cause}{hint}"


def _end_time(pod: Json) -> str:
    times = [
        ((container.get("state") or {}).get("terminated") or {}).get("finishedAt") or "~"
        for container in pod.get("status", {}).get("containerStatuses") or ()
    ]
    return min(times, default="~")
