"""The job object and its pods, kept up to date by reflectors, for the reader of the job's log."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Event

from launcher.cluster.lost_nodes import lost_reason
from launcher.errors import LauncherError
from launcher.jobs import JobState, Phase
from launcher.kinds import Kind
from launcher.kube.api import Api, Json
from launcher.kube.reflector import Reflector, Selector
from launcher.kube.resources import PODS
from launcher.podlogs.state import ContainerState, Instance, container_state

# The API server's clients put this before the message of an event that comes often.
_COMBINED = "(combined from similar events): "

StateOf = Callable[[Json, Sequence[Json]], JobState]
"""Returns a job's state from its object and its pods."""


class JobWatch:
    """The job object and its pods, kept up to date by reflectors.

    Raises:
        LauncherError: the cluster does not answer, or refuses.
    """

    def __init__(self, api: Api, kind: Kind, name: str, state_of: StateOf) -> None:
        self.api = api
        self.name = name
        self.changed = Event()
        self._kind = kind
        self._state_of = state_of
        self._deleted_pods: dict[str, tuple[Json, bool]] = {}
        self._deleted_job: Json | None = None
        selector = Selector(kind.resource, fields=f"metadata.name={name}")
        self._jobs = Reflector(api, selector, self.changed.set, removed=self._on_job_deleted)
        pods = Selector(PODS, labels=f"{kind.pod_label}={name}")
        try:
            self._pods = Reflector(api, pods, self.changed.set, removed=self._on_pod_deleted)
        except LauncherError:
            self._jobs.stop()
            raise

    def _on_pod_deleted(self, pod: Json, seen: bool) -> None:
        self._deleted_pods[pod["metadata"]["uid"]] = (pod, seen)

    def _on_job_deleted(self, job: Json, _seen: bool) -> None:
        self._deleted_job = job

    def close(self) -> None:
        """Stop the reflectors; a reflector that waits for the server stops soon."""
        self._jobs.stop()
        self._pods.stop()

    @property
    def job(self) -> Json | None:
        """The job object; None if it was deleted."""
        return next(iter(self._jobs.objects()), None)

    @property
    def pods(self) -> list[Json]:
        """The pods that exist."""
        return self._pods.objects()

    @property
    def disconnected(self) -> bool:
        """Whether the cluster does not answer."""
        return self._jobs.away or self._pods.away

    def has_ended(self) -> bool:
        """Return whether nothing more will happen and all pods are known.

        Raises:
            LauncherError: the cluster refuses to say.
        """
        for reflector in (self._jobs, self._pods):
            if reflector.error is not None:
                raise reflector.error
        job = self.job
        return (job is None or self._kind.phase(job, self.pods)[0].ended) and self._has_all_pods()

    def _has_all_pods(self) -> bool:
        """List the pods: a watch that was cut is behind the job's, and would miss a pod made meanwhile."""
        try:
            self._pods.add_unreported()
        except LauncherError as error:
            if not error.transient:
                raise
            return False
        return True

    def outcome(self) -> JobState | None:
        """Return how the job ended, if that was seen; the job may have been removed since."""
        job, pods = self.job or self._deleted_job, self.pods
        if job is None or not self._kind.phase(job, pods)[0].ended:
            return None
        try:
            return self._state_of(job, pods)
        except LauncherError as error:
            if not error.transient:
                raise
            return None

    def status(self) -> str:
        """Return the job's phase and why it waits, for the user; empty if it has ended or the answer is not known."""
        job = self.job
        if job is None:
            return ""
        phase, reason = self._kind.phase(job, self.pods)
        if phase.ended:
            return ""
        if phase is Phase.PENDING:
            try:
                reason = self._state_of(job, self.pods).reason
            except LauncherError as error:
                if not error.transient:
                    raise
                return ""  # The caller asks again.
        if phase is Phase.RUNNING:
            reason = lost_reason(self.name, self.pods, time.time()) or reason
        return f"{phase.value}: {reason}" if reason else phase.value

    def status_key(self, status: str) -> str:
        """Return a status without the random names of pods: a controller that fails tries a new name each time."""
        job = self.job
        names = "" if job is None else self._kind.pod_names(job)
        return re.sub(names, "", status.replace(_COMBINED, "")) if names else status

    def container_state(self, instance: Instance) -> ContainerState:
        """Return what is known of a container instance."""
        pod = next((pod for pod in self.pods if pod["metadata"]["uid"] == instance.pod_uid), None)
        if pod is not None:
            return container_state(pod, instance.container)
        if instance.pod_uid not in self._deleted_pods:
            return ContainerState(instance.pod_uid, gone=True)
        pod, seen = self._deleted_pods[instance.pod_uid]
        return replace(container_state(pod, instance.container), gone=True, unseen=not seen)

    def has_pod(self, instance: Instance) -> bool:
        """Ask the server whether the pod's name is still its own; False while the server does not answer."""
        try:
            pods, _ = self.api.list(PODS, fields=f"metadata.name={instance.pod}")
        except LauncherError:
            return False
        return [pod["metadata"]["uid"] for pod in pods] == [instance.pod_uid]
