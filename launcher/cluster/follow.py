"""The log of a job on a cluster: the lines of all its pods, as they come and go, and what a reader should know beside.

Reflectors know the job and its pods; `launcher.podlogs` reads each container instance's log and merges them, held up by
a slow reader. The end is the job's, by its status.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timezone
from threading import Event
from typing import TYPE_CHECKING

from launcher.cluster.kinds import attempt_of, pods_of
from launcher.errors import LauncherError, NotFoundError
from launcher.jobs import Block, Ended, LogItem, Loss, Notice, Phase
from launcher.kube.api import Json
from launcher.kube.reflector import Reflector, Selector
from launcher.kube.resources import PODS
from launcher.kube.retry import AWAY, BACK
from launcher.manifests.labels import CONTAINER
from launcher.podlogs.batch import Item, LogGap
from launcher.podlogs.container import ContainerLog
from launcher.podlogs.merge import Merged
from launcher.podlogs.state import ContainerState, Instance, container_state
from launcher.podlogs.stop import Stop

if TYPE_CHECKING:
    from launcher.cluster.jobs import ClusterBackend

_WAIT_S = 0.2
# The reason why a job waits is in events and the PodGroup, which are asked for: a change of it may set nothing off.
_ASK_S = 2.0
# Where nothing is to be had for so long, what there is is shown; and so much later an ended job's follower gives up.
_QUIET_S = 10.0
_STUCK_S = 30.0
# The trainer's supervisor says this last.
_LAST_WORD = b" ended lines="


def lines_of(
    backend: "ClusterBackend", name: str, *, follow: bool, since_s: float | None, attempt: int | None
) -> Iterator[LogItem]:
    """See `launcher.jobs.Backend.logs`."""
    stop = Stop()
    with Merged[Instance](stop) as merged, closing(_Job(backend, name)) as job:
        job.check(attempt)
        yield from _Reading(job, merged, stop, follow=follow, since_s=since_s).items()


class _Job:
    """The job and its pods, kept up to date."""

    def __init__(self, backend: "ClusterBackend", name: str) -> None:
        self.backend = backend
        self.name = name
        self.changed = Event()
        self._gone: dict[str, tuple[Json, bool]] = {}
        self._last: Json | None = None
        api, fields = backend.api, f"metadata.name={name}"
        selector = Selector(backend.kind.resource, fields=fields)
        self._jobs = Reflector(api, selector, self.changed.set, removed=self._remember)
        self._pods = Reflector(
            api, Selector(PODS, labels=pods_of(backend.kind, name)), self.changed.set, removed=self._bury
        )

    def _bury(self, pod: Json, seen: bool) -> None:
        self._gone[pod["metadata"]["uid"]] = (pod, seen)

    def _remember(self, job: Json, _seen: bool) -> None:
        self._last = job

    def close(self) -> None:
        """End the reflectors; those that wait for the server end soon."""
        self._jobs.stop()
        self._pods.stop()

    def check(self, attempt: int | None) -> None:
        """A cluster deletes the pods of an attempt with it."""
        job = self.job
        if job is not None and attempt is not None and attempt != attempt_of(job):
            raise NotFoundError(
                f"job {self.name}: the cluster has its latest attempt's log alone; others are in its output folder"
            )

    @property
    def job(self) -> Json | None:
        """Its object, or None if it has been deleted."""
        return next(iter(self._jobs.objects()), None)

    @property
    def pods(self) -> list[Json]:
        """Those that there are now."""
        return self._pods.objects()

    @property
    def away(self) -> bool:
        """The cluster does not answer now."""
        return self._jobs.away or self._pods.away

    def ended(self) -> bool:
        """Whether nothing more will happen, and all its pods are known.

        Raises:
            LauncherError: it cannot be known any more.
        """
        for reflector in (self._jobs, self._pods):
            if reflector.error is not None:
                raise reflector.error
        job = self.job
        return (job is None or self.backend.kind.phase(job, self.pods)[0].ended) and self._has_all_pods()

    def _has_all_pods(self) -> bool:
        """The watch of pods may be behind the job's: one that was made while it was cut would never be read."""
        try:
            self._pods.look()
        except LauncherError as error:
            if not error.transient:
                raise
            return False
        return True

    def outcome(self) -> Iterator[Ended]:
        """How it ended, if that was seen; it may have been removed since."""
        job, pods = self.job or self._last, self.pods
        if job is None or not self.backend.kind.phase(job, pods)[0].ended:
            return
        try:
            yield Ended(self.backend.state_of(job, pods))
        except LauncherError as error:
            if not error.transient:
                raise

    def told(self) -> str:
        """What a person should know of it: its phase, and why it waits."""
        job = self.job
        if job is None:
            return ""
        phase, reason = self.backend.kind.phase(job, self.pods)
        if phase.ended:
            return ""
        if phase is Phase.PENDING:
            try:
                reason = self.backend.state_of(job, self.pods).reason
            except LauncherError as error:
                if not error.transient:
                    raise
                return ""  # it is asked again
        return f"{phase.value}: {reason}" if reason else phase.value

    def state(self, instance: Instance) -> Callable[[], ContainerState]:
        """What is known of a container, whenever it is asked for."""

        def known() -> ContainerState:
            pod = next((one for one in self.pods if one["metadata"]["uid"] == instance.pod_uid), None)
            if pod is not None:
                return container_state(pod, instance.container)
            if (last := self._gone.get(instance.pod_uid)) is None:
                return ContainerState(instance.pod_uid, gone=True)
            pod, seen = last
            return replace(container_state(pod, instance.container), gone=True, unseen=not seen)

        return known

    def is_there(self, instance: Instance) -> Callable[[], bool]:
        """Whether its pod's name is still its own, by the server; while that gives no answer, nobody knows."""

        def asked() -> bool:
            try:
                found, _ = self.backend.api.list(PODS, fields=f"metadata.name={instance.pod}")
            except LauncherError:
                return False
            return [pod["metadata"]["uid"] for pod in found] == [instance.pod_uid]

        return asked


class _Reading:
    """One reader's view of a job: what is followed, and what was already told."""

    def __init__(
        self, job: _Job, merged: "Merged[Instance]", stop: Stop, *, follow: bool, since_s: float | None
    ) -> None:
        self._job = job
        self._merged = merged
        self._stop = stop
        self._follow = follow
        self._since_s = since_s
        self._behind: set[Instance] = set()
        self._known: set[Instance] = set()
        self._complete: set[Instance] = set()
        self._told: list[str] = []
        self._away = False
        self._quiet_since = time.monotonic()

    def items(self) -> Iterator[LogItem]:
        """Until the job has ended and all its lines have come; without follow, until those that there are have."""
        caught_up = last = False
        ask_at = 0.0
        while not self._merged.ended:
            if self._job.changed.is_set() or time.monotonic() >= ask_at:
                self._job.changed.clear()
                ask_at = time.monotonic() + _ASK_S
                if not last and (self._job.ended() or not self._follow):
                    last, self._quiet_since = True, time.monotonic()
                yield from self._news()
                self._start_logs()
                if last:
                    self._merged.finish()
            found = self._merged.get(_WAIT_S)
            if found is not None:
                yield from self._shown(*found)
                self._quiet_since = time.monotonic()
            if not caught_up and (not self._behind or self._quiet_s() > _QUIET_S):
                caught_up = True
                yield Block(b"")
            if last and found is None and self._quiet_s() > (_STUCK_S if self._follow else _QUIET_S):
                yield from self._given_up()
                break
        if self._follow:
            yield from self._job.outcome()

    def _quiet_s(self) -> float:
        """For how long nothing has come, though the cluster answers."""
        if self._away:
            self._quiet_since = time.monotonic()
        return time.monotonic() - self._quiet_since

    def _given_up(self) -> Iterator[Loss]:
        """A node that is away for good has the rest of its pods' logs."""
        for name in sorted({_named(instance) for instance in self._merged.open - self._complete}):
            yield Loss(f"{name}: its node does not give the rest of its log")

    def _shown(self, instance: Instance, item: Item) -> Iterator[Block | Loss]:
        if isinstance(item, LogGap):
            # Of a pod that goes when its trainer has said its last word, nothing is lost.
            if item.last_ns is not None or instance not in self._complete:
                yield Loss(f"{_named(instance)}: {_bounds(item)}: {item.why}")
        elif item.caught_up:
            self._behind.discard(instance)
        elif instance.container == CONTAINER:
            if _LAST_WORD in item.data[-4096:]:
                self._complete.add(instance)
            yield Block(item.data, f"{instance.pod_uid} {instance.restart_count}", item.times)
        else:
            # By this nobody takes its lines for a device's, whatever it writes.
            name = f"[{instance.container}] ".encode()
            yield Block(name + item.data[:-1].replace(b"\n", b"\n" + name) + b"\n", stamps=item.times)

    def _news(self) -> Iterator[Notice]:
        """Each phase of the job, and each reason why it waits, once: some take turns for ever."""
        if self._job.away != self._away:
            self._away = self._job.away
            yield Notice(AWAY if self._away else BACK)
        if self._away or not self._follow:
            return
        text = self._job.told()
        if self._told and text.partition(":")[0] != self._told[0].partition(":")[0]:
            self._told = []
        if text and text not in self._told:
            self._told.append(text)
            yield Notice(f"job {self._job.name}: {text}")

    def _start_logs(self) -> None:
        """Read the log of each instance of each pod; one that has not begun is waited for."""
        api = self._job.backend.api
        for pod in self._job.pods:
            for instance in _instances(pod):
                if instance in self._known:
                    continue
                self._known.add(instance)
                self._behind.add(instance)
                log = ContainerLog(
                    api.credentials,
                    instance,
                    self._job.state(instance),
                    self._stop,
                    follow=self._follow,
                    since_s=self._since_s,
                    log_in_again=api.log_in_again,
                    is_there=self._job.is_there(instance),
                )
                self._merged.add(instance, log)


def _instances(pod: Json) -> Iterator[Instance]:
    """Each container's instance now, and the one before: a kubelet keeps no more. An overlay may bring containers."""
    meta, spec = pod["metadata"], pod["spec"]
    for container in (one["name"] for one in (*(spec.get("initContainers") or ()), *spec["containers"])):
        latest = container_state(pod, container).restart_count
        for count in range(max(0, latest - 1), latest + 1):
            yield Instance(meta["namespace"], meta["name"], meta["uid"], container, count)


def _named(instance: Instance) -> str:
    return f"pod {instance.pod}" + ("" if instance.container == CONTAINER else f", container {instance.container}")


def _bounds(gap: LogGap) -> str:
    first, last = _clock(gap.first_ns), _clock(gap.last_ns)
    if first and last:
        return f"lines between {first} and {last} are lost"
    return f"lines after {first} may be lost" if first else "what it may have said is lost"


def _clock(nanoseconds: int | None) -> str:
    if nanoseconds is None:
        return ""
    return datetime.fromtimestamp(nanoseconds / 1e9, timezone.utc).strftime("%H:%M:%S.%f")[:-3] + "Z"
