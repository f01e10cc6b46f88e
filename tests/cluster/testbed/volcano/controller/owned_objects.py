"""Create and delete the objects of a Volcano Job: the plugins' objects, the PodGroup, and the pods."""

from collections.abc import Sequence

from tests.cluster.testbed.api import ApiError
from tests.cluster.testbed.volcano.client import GROUPS, PODS, Client, Json, error_message, ignoring, path
from tests.cluster.testbed.volcano.controller import objects, plugins
from tests.cluster.testbed.volcano.controller.job_events import JobEvents
from tests.cluster.testbed.volcano.controller.rules import is_terminating

_SCALED = ("minMember", "minTaskMember", "minResources")


class PluginError(Exception):
    """An object of a plugin is refused; the message is the API server's."""


class OwnedObjects:
    """Create and delete the objects of Jobs."""

    def __init__(self, client: Client, job_events: JobEvents) -> None:
        """`job_events` gets the pods that are deleted here, because these deletions are not evictions."""
        self._client = client
        self._job_events = job_events

    def create_plugin_objects(self, job: Json, *, only_hosts: bool) -> None:
        """Create the plugins' objects that do not exist.

        Raises:
            PluginError: an object is refused.
        """
        hosts_object = plugins.hosts_config_map(job)
        plugin_objects = [
            *([hosts_object] if hosts_object else []),
            *([] if only_hosts else plugins.other_objects(job)),
        ]
        for kind, body in plugin_objects:
            body["metadata"]["ownerReferences"] = objects.owner(job)
            try:
                with ignoring(409):
                    self._client.create(path(kind, job["metadata"]["namespace"]), body)
            except ApiError as error:
                if error.status != 422:
                    raise
                raise PluginError(error_message(error)) from error

    def delete_plugin_objects(self, job: Json) -> None:
        """Delete the plugins' objects if the Job's status names them; as recorded, one stays after the last retry."""
        if job["status"].pop("controlledResources", None):
            for kind, name in plugins.object_names(job):
                self._client.remove(path(kind, job["metadata"]["namespace"], name))

    def ensure_pod_group(self, job: Json, group: Json | None) -> Json:
        """Return the Job's PodGroup; create or change it if necessary."""
        desired = objects.pod_group(job)
        groups_path = path(GROUPS, job["metadata"]["namespace"])
        if group is None:
            return self._client.create(groups_path, desired)
        if any(desired["spec"][key] and group["spec"].get(key) != desired["spec"][key] for key in _SCALED):
            changes = {key: desired["spec"][key] for key in _SCALED}
            changed: Json = self._client.merge(f"{groups_path}/{group['metadata']['name']}", {"spec": changes})
            return changed
        return group

    def delete_pod_group(self, job: Json) -> None:
        """Delete the PodGroup."""
        self._client.remove(path(GROUPS, job["metadata"]["namespace"], objects.group_name(job)))

    def scale(self, job: Json, pods: Sequence[Json]) -> list[Json]:
        """Create missing pods and delete surplus ones; return the current pods."""
        surplus = {pod["metadata"]["name"]: pod for pod in pods}
        current: list[Json] = []
        for task in job["spec"]["tasks"]:
            for index in range(task["replicas"]):
                pod = surplus.pop(objects.pod_name(job, task, index), None)
                if pod is not None:
                    current.append(pod)
                    continue
                # 409: a pod of an older Job of this name still exists.
                with ignoring(409):
                    pods_path = path(PODS, job["metadata"]["namespace"])
                    current.append(self._client.create(pods_path, objects.pod(job, task, index)))
        for pod in surplus.values():
            if not is_terminating(pod):
                self.delete_pod(pod)
        return current

    def delete_pod(self, pod: Json) -> None:
        """Delete this pod, but no other pod of its name."""
        metadata = pod["metadata"]
        self._job_events.expect_deletion(pod)
        self._client.remove(path(PODS, metadata["namespace"], metadata["name"]), uid=metadata["uid"])
