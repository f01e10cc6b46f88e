"""The files of a job's run on its output claim: read in a pod of the job, or in a small pod made for it.

The small pod has the image, the user and the restrictions of the job's pods, the output claim read-only, and no NPU.
The job owns it, and it ends by itself after an hour: a launcher that was killed leaves nothing behind for long.
"""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from launcher.errors import ApiError, ConflictError, LauncherError
from launcher.jobs import Channel
from launcher.kinds import Kind
from launcher.kinds.labels import CONTAINER, MANAGED
from launcher.kinds.objects import owner_reference
from launcher.kube.api import Api, Json
from launcher.kube.exec_stream import exec_stream
from launcher.kube.resources import PODS
from launcher.kube.retry import poll
from launcher.results.file_client import server_command

READER_LABEL = "pnas/reads"
"""Label: the job whose files a pod reads. It is not the label of the job's own pods."""
READER_S = 3600
"""Seconds after which the cluster ends a pod that reads files."""
_START_S = 180.0
_POLL_S = 1.0
_VOLUME = "output"
_PYTHON = "python3"
# A quota can demand all of them.
_RESOURCES = {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "2", "memory": "512Mi"}}
_KEPT = ("securityContext", "imagePullSecrets", "nodeSelector", "tolerations", "priorityClassName", "runtimeClassName")
_KEPT_OF_CONTAINER = ("image", "imagePullPolicy", "securityContext")


@contextmanager
def open_run_files(
    api: Api, kind: Kind, job: Json, pods: Sequence[Json], folder: Path, *, on_note: Callable[[str], None], live: bool
) -> Iterator[Channel]:
    """Give a channel to the program that serves the files of a run.

    Args:
        live: only in a pod of the job, which can also write to the folder.

    Raises:
        LauncherError: no pod can read them.
    """
    command = server_command(folder, _PYTHON)
    for pod in pods:
        if _is_running(pod):
            with exec_stream(api, pod["metadata"]["name"], CONTAINER, command) as stream:
                yield stream
            return
    if live:
        raise ConflictError(f"job {job['metadata']['name']}: none of its pods runs now; try again when one does")
    with _reader(api, kind, job, on_note) as name, exec_stream(api, name, CONTAINER, command) as stream:
        yield stream


@contextmanager
def _reader(api: Api, kind: Kind, job: Json, on_note: Callable[[str], None]) -> Iterator[str]:
    """Start the small pod, and delete it at the end."""
    template: Any = job
    for key in kind.pod_template:
        template = template[key]
    pod = reader_pod(job, template["spec"])
    name = pod["metadata"]["name"]
    on_note(f"starting pod {name}, which reads the files on the claim")
    try:
        api.create(PODS, pod)
        _wait_until_it_runs(api, name)
        yield name
    finally:
        with suppress(LauncherError):  # the job owns it, and the cluster ends it
            api.delete(PODS, name, force=True)


def reader_pod(job: Json, spec: Mapping[str, Any]) -> Json:
    """Return the pod that reads the output of a job whose pods have this spec."""
    container = next(item for item in spec["containers"] if item["name"] == CONTAINER)
    mount = next(item for item in container["volumeMounts"] if item["name"] == _VOLUME)
    volume = next(item for item in spec["volumes"] if item["name"] == _VOLUME)
    # An overlay can have put another kind of volume in the claim's place.
    if (claim := volume.get("persistentVolumeClaim")) is not None:
        volume = {**volume, "persistentVolumeClaim": {**claim, "readOnly": True}}
    name = job["metadata"]["name"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{name[:40].rstrip('-')}-files-{secrets.token_hex(3)}",
            "labels": {**MANAGED, READER_LABEL: name},
            "ownerReferences": [owner_reference(job, controller=False)],
        },
        "spec": {
            **{key: spec[key] for key in _KEPT if key in spec},
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "activeDeadlineSeconds": READER_S,
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {
                    "name": CONTAINER,
                    **{key: container[key] for key in _KEPT_OF_CONTAINER if key in container},
                    "command": [_PYTHON, "-c", f"import time; time.sleep({READER_S})"],
                    "resources": _RESOURCES,
                    "volumeMounts": [{**mount, "readOnly": True}],
                }
            ],
            "volumes": [volume],
        },
    }


def _wait_until_it_runs(api: Api, name: str) -> None:
    reason = "nothing is known of it"

    def runs() -> bool | None:
        nonlocal reason
        pods, _ = api.list(PODS, fields=f"metadata.name={name}")
        if not pods:
            raise ApiError(f"pod {name}, which was to read the files, was deleted", status=404)
        if _is_running(pods[0]):
            return True
        reason = _why_not(pods[0]) or reason
        if pods[0].get("status", {}).get("phase") in ("Failed", "Succeeded"):
            raise ApiError(f"pod {name}, which was to read the files, has ended: {reason}", status=410)
        return None

    def expired(_error: LauncherError | None) -> str:
        return f"pod {name}, which was to read the files, does not start: {reason}; free room for it, or ask for help"

    poll(runs, every_s=_POLL_S, deadline=time.monotonic() + _START_S, expired=expired)


def _is_running(pod: Json) -> bool:
    if "deletionTimestamp" in pod["metadata"]:
        return False
    containers = pod.get("status", {}).get("containerStatuses") or ()
    return any(item["name"] == CONTAINER and "running" in (item.get("state") or {}) for item in containers)


def _why_not(pod: Json) -> str:
    """Return why a pod does not run yet, in the cluster's own words."""
    status = pod.get("status", {})
    for item in status.get("containerStatuses") or ():
        waiting = (item.get("state") or {}).get("waiting") or {}
        if waiting.get("message") or waiting.get("reason"):
            return str(waiting.get("message") or waiting["reason"])
    conditions = [item for item in status.get("conditions") or () if item.get("status") == "False"]
    return str(next((item["message"] for item in conditions if item.get("message")), status.get("message") or ""))
