"""The log of a job on a cluster: the lines of all its pods as they come and go, and notices for the reader.

Reflectors know the job and its pods; `launcher.podlogs` reads the log of each container instance and merges them. A
slow reader slows them down. The job's status decides when the log ends.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Event

from launcher.errors import LauncherError, NotFoundError
from launcher.jobs import Ended, JobState, LogBlock, LogItem, LogLoss, Notice, Phase
from launcher.kinds import Kind
from launcher.kinds.labels import CONTAINER
from launcher.kinds.objects import attempt_number
from launcher.kube.api import Api, Json
from launcher.kube.reflector import Reflector, Selector
from launcher.kube.resources import PODS
from launcher.kube.retry import AWAY, BACK
from launcher.podlogs.container import ContainerLog
from launcher.podlogs.lines import LogPiece, timestamps, without_timestamps
from launcher.podlogs.merge import MergedLogs
from launcher.podlogs.state import ContainerState, Instance, container_state
from launcher.podlogs.transport import StopSignal

_WAIT_S = 0.2
# The trainer's supervisor prints this last.
_LAST_LINE = b" ended lines="

StateOf = Callable[[Json, Sequence[Json]], JobState]
"""Returns a job's state from its object and its pods."""


def follow_job(
    api: Api,
    kind: Kind,
    name: str,
    state_of: StateOf,
    *,
    follow: bool,
    since_s: float | None,
    attempt: int | None,
) -> Iterator[LogItem]:
    """Yield the job's log; `launcher.jobs.Jobs.logs` says what comes.

    Raises:
        NotFoundError: only the job's output folder has the log of this attempt.
    """
    stop = StopSignal()
    with MergedLogs[Instance](stop) as merged, closing(JobWatch(api, kind, name, state_of)) as watch:
        job = watch.job
        if job is not None and attempt is not None and attempt != attempt_number(job):
            # The cluster deletes an attempt's pods together with it.
            raise NotFoundError(
                f"job {name}: the cluster has only its latest attempt's log; the output folder has the others"
            )
        yield from LogFollower(watch, merged, stop, follow=follow, since_s=since_s).items()


class JobWatch:
    """The job object and its pods, kept up to date by reflectors."""

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
        self._pods = Reflector(api, pods, self.changed.set, removed=self._on_pod_deleted)

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
        return f"{phase.value}: {reason}" if reason else phase.value

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


@dataclass
class LogFollower:
    """One reader of a job's log: which logs are read, and which notices the reader has got.

    Attributes:
        ask_s: seconds between two questions why the job waits: events and PodGroups change without waking the
            reflectors.
        quiet_s: seconds without new lines until the reader is shown what is there; without `follow`, until the end.
        stuck_s: seconds without new lines after the job's end until the follower gives up.
    """

    watch: JobWatch
    merged: MergedLogs[Instance]
    stop: StopSignal
    follow: bool
    since_s: float | None
    ask_s: float = 2.0
    quiet_s: float = 10.0
    stuck_s: float = 30.0
    behind: set[Instance] = field(default_factory=set)
    started: set[Instance] = field(default_factory=set)
    complete: set[Instance] = field(default_factory=set)
    shown_statuses: list[str] = field(default_factory=list)
    disconnected: bool = False
    quiet_since: float = field(default_factory=time.monotonic)

    def items(self) -> Iterator[LogItem]:
        """Yield until the job has ended and all its lines have come; without follow, until the present lines have."""
        caught_up = last = False
        ask_at = 0.0
        while not self.merged.ended:
            if self.watch.changed.is_set() or time.monotonic() >= ask_at:
                self.watch.changed.clear()
                ask_at = time.monotonic() + self.ask_s
                if not last and (self.watch.has_ended() or not self.follow):
                    last, self.quiet_since = True, time.monotonic()
                yield from self.notices()
                self._start_logs()
                if last:
                    self.merged.finish()
            piece = self.merged.get(_WAIT_S)
            if piece is not None:
                yield from self.log_items(*piece)
                self.quiet_since = time.monotonic()
            if not caught_up and (not self.behind or self._quiet_s() > self.quiet_s):
                caught_up = True
                yield LogBlock(b"")
            give_up_s = self.stuck_s if self.follow else self.quiet_s
            if last and piece is None and self._quiet_s() > give_up_s:
                yield from self._unread_logs()
                break
        if self.follow and (outcome := self.watch.outcome()) is not None:
            yield Ended(outcome)

    def _quiet_s(self) -> float:
        """Return for how long no line has come although the cluster answers."""
        if self.disconnected:
            self.quiet_since = time.monotonic()
        return time.monotonic() - self.quiet_since

    def _unread_logs(self) -> Iterator[LogLoss]:
        """Name the pods whose logs stay on a lost node."""
        for name in sorted({_instance_name(instance) for instance in self.merged.open - self.complete}):
            yield LogLoss("its node does not give the rest of its log", source=name)

    def log_items(self, instance: Instance, piece: LogPiece) -> Iterator[LogBlock | LogLoss]:
        """Yield what the reader gets of one piece of a container's log."""
        if isinstance(piece, LogLoss):
            # A pod that is deleted after its supervisor's last line loses nothing.
            if piece.last_ns is not None or instance not in self.complete:
                yield replace(piece, source=_instance_name(instance))
        elif not piece:
            self.behind.discard(instance)
        else:
            data, times = without_timestamps(piece), partial(timestamps, piece)
            if instance.container == CONTAINER:
                if _LAST_LINE in data[-4096:]:
                    self.complete.add(instance)
                yield LogBlock(data, f"{instance.pod_uid} {instance.restart_count}", times)
            else:
                # The prefix keeps its lines from being read as a device's, whatever it writes.
                prefix = f"[{instance.container}] ".encode()
                yield LogBlock(prefix + data[:-1].replace(b"\n", b"\n" + prefix) + b"\n", timestamps=times)

    def notices(self) -> Iterator[Notice]:
        """Yield each phase of the job, and each reason why it waits, once: some reasons alternate for ever."""
        if self.watch.disconnected != self.disconnected:
            self.disconnected = self.watch.disconnected
            yield Notice(AWAY if self.disconnected else BACK)
        if self.disconnected or not self.follow:
            return
        status = self.watch.status()
        shown = self.shown_statuses
        if shown and status.partition(":")[0] != shown[0].partition(":")[0]:
            shown.clear()
        if status and status not in shown:
            shown.append(status)
            yield Notice(f"job {self.watch.name}: {status}")

    def _start_logs(self) -> None:
        """Read the log of each instance of each pod, and wait for an instance that has not started."""
        api = self.watch.api
        for pod in self.watch.pods:
            for instance in _instances(pod):
                if instance in self.started:
                    continue
                self.started.add(instance)
                self.behind.add(instance)
                log = ContainerLog(
                    api.credentials,
                    instance,
                    partial(self.watch.container_state, instance),
                    self.stop,
                    follow=self.follow,
                    since_s=self.since_s,
                    log_in_again=api.log_in_again,
                    is_there=partial(self.watch.has_pod, instance),
                )
                self.merged.add(instance, log)


def _instances(pod: Json) -> Iterator[Instance]:
    """Yield each container's latest instance and the one before it, which is all that a kubelet keeps.

    An overlay can add containers.
    """
    meta, spec = pod["metadata"], pod["spec"]
    for container in (item["name"] for item in (*(spec.get("initContainers") or ()), *spec["containers"])):
        latest = container_state(pod, container).restart_count
        for count in range(max(0, latest - 1), latest + 1):
            yield Instance(meta["namespace"], meta["name"], meta["uid"], container, count)


def _instance_name(instance: Instance) -> str:
    return f"pod {instance.pod}" + ("" if instance.container == CONTAINER else f", container {instance.container}")
