"""The end of a pod's log, which tells the job's progress and why it failed."""

from launcher.errors import LauncherError
from launcher.kinds.labels import CONTAINER
from launcher.kube.api import Api
from launcher.kube.resources import PODS

_TAIL_LINES = "400"


def log_end(api: Api, pod: str) -> bytes:
    """Return the last lines of the pod of this name.

    It is nothing of a pod that has not started, was deleted, is on a lost node, or is hidden from this user: `logs`
    reports each of these.
    """
    query = {"tailLines": _TAIL_LINES, "container": CONTAINER}
    try:
        return api.read(PODS.path(api.namespace, pod, "log"), query, action=f"get {PODS}/log")
    except LauncherError:
        return b""
