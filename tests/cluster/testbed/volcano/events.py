"""Write events like Volcano: one object for each text, whose count grows."""

import datetime
import uuid

from tests.cluster.testbed.api import ApiError
from tests.cluster.testbed.volcano.client import Client, Json, ignoring, path

_API_VERSIONS = {
    "Job": "batch.volcano.sh/v1alpha1",
    "PodGroup": "scheduling.volcano.sh/v1beta1",
    "Queue": "scheduling.volcano.sh/v1beta1",
}


def timestamp() -> str:
    """Return the time in an object's form, in UTC."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


class EventRecorder:
    """Write the events of one component."""

    def __init__(self, client: Client, component: str) -> None:
        self._client = client
        self._component = component
        self._written: dict[tuple[str, str, str], tuple[str, int]] = {}

    def event(self, kind: str, item: Json, reason: str, message: str, *, warning: bool = False) -> None:
        """Write an event about an object; count an event that was written before.

        Raises:
            ApiError: the API server refuses it, and the namespace is not being deleted.
        """
        metadata = item["metadata"]
        namespace = metadata.get("namespace", "default")
        key = (metadata["uid"], reason, message)
        name, count = self._written.get(key, ("", 0))
        if name:
            try:
                patch = {"count": count + 1, "lastTimestamp": timestamp()}
                self._client.merge(path("events", namespace, name), patch)
            except ApiError as error:
                if error.status not in {403, 404}:
                    raise
            else:
                self._written[key] = (name, count + 1)
            return
        name = f"{metadata['name']}.{uuid.uuid4().hex[:16]}"
        event: Json = {
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": {
                "apiVersion": _API_VERSIONS.get(kind, "v1"),
                "kind": kind,
                "name": metadata["name"],
                "namespace": namespace,
                "resourceVersion": metadata["resourceVersion"],
                "uid": metadata["uid"],
            },
            "type": "Warning" if warning else "Normal",
            "reason": reason,
            "message": message,
            "source": {"component": self._component},
            "reportingComponent": self._component,
            "count": 1,
            "firstTimestamp": timestamp(),
            "lastTimestamp": timestamp(),
        }
        # 403: the namespace is being deleted, and accepts no new objects.
        with ignoring(403):
            self._client.create(path("events", namespace), event)
            self._written[key] = (name, 1)
