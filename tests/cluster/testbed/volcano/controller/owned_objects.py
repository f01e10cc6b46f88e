"""What a Job of Volcano consists of in the API server, made and taken away: plugins' objects, PodGroup, pods."""

from collections.abc import Sequence

from tests.cluster.testbed.api import ApiError
from tests.cluster.testbed.volcano.client import GROUPS, PODS, Client, Json, complaint, path, tolerating
from tests.cluster.testbed.volcano.controller import objects, plugins
from tests.cluster.testbed.volcano.controller.job_events import Happenings
from tests.cluster.testbed.volcano.controller.rules import going

_SCALED = ("minMember", "minTaskMember", "minResources")


class PluginError(Exception):
    """An object of a plugin is refused; the message is the API server's."""


class Parts:
    """Makes and deletes them."""

    def __init__(self, client: Client, happenings: Happenings) -> None:
        """`happenings` are told which pods are deleted here, which is no eviction."""
        self._client = client
        self._happenings = happenings

    def plug(self, job: Json, *, hosts_alone: bool) -> None:
        """Make the plugins' objects that are not there.

        Raises:
            PluginError: one is refused.
        """
        first = plugins.hosts(job)
        everything = [*([first] if first else []), *([] if hosts_alone else plugins.others(job))]
        for kind, body in everything:
            body["metadata"]["ownerReferences"] = objects.owner(job)
            try:
                with tolerating(409):
                    self._client.create(path(kind, job["metadata"]["namespace"]), body)
            except ApiError as error:
                if error.status != 422:
                    raise
                raise PluginError(complaint(error)) from error

    def unplug(self, job: Json) -> None:
        """Delete them, if the Job's status names them; after its last try it does not, and one stays: as recorded."""
        if job["status"].pop("controlledResources", None):
            for kind, name in plugins.names(job):
                self._client.remove(path(kind, job["metadata"]["namespace"], name))

    def group(self, job: Json, group: Json | None) -> Json:
        """The Job's PodGroup, made or changed if need be."""
        wanted = objects.pod_group(job)
        where = path(GROUPS, job["metadata"]["namespace"])
        if group is None:
            return self._client.create(where, wanted)
        if any(wanted["spec"][key] and group["spec"].get(key) != wanted["spec"][key] for key in _SCALED):
            changes = {key: wanted["spec"][key] for key in _SCALED}
            changed: Json = self._client.merge(f"{where}/{group['metadata']['name']}", {"spec": changes})
            return changed
        return group

    def ungroup(self, job: Json) -> None:
        """Delete the PodGroup."""
        self._client.remove(path(GROUPS, job["metadata"]["namespace"], objects.group_name(job)))

    def scale(self, job: Json, pods: Sequence[Json]) -> list[Json]:
        """Make the pods that are missing and delete those that are too many; the pods there are then."""
        there = {pod["metadata"]["name"]: pod for pod in pods}
        current: list[Json] = []
        for task in job["spec"]["tasks"]:
            for index in range(task["replicas"]):
                pod = there.pop(objects.pod_name(job, task, index), None)
                if pod is not None:
                    current.append(pod)
                    continue
                # 409: one of an older Job of this name is still there.
                with tolerating(409):
                    where = path(PODS, job["metadata"]["namespace"])
                    current.append(self._client.create(where, objects.pod(job, task, index)))
        for pod in there.values():
            if not going(pod):
                self.delete(pod)
        return current

    def delete(self, pod: Json) -> None:
        """Delete a pod, and no other of its name."""
        metadata = pod["metadata"]
        self._happenings.ours(pod)
        self._client.remove(path(PODS, metadata["namespace"], metadata["name"]), uid=metadata["uid"])
