"""The log of a job on a cluster: the lines of all its pods, as they come and go, and what a reader should know beside.

Reflectors know the job and its pods; each container instance has a thread that reads its log; one bounded queue leads
all of them to the reader, who holds them up if slow. The end is the job's, by its status.
"""

import queue
import threading
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from launcher.backends import Block, Notice, Phase
from launcher.backends.reader import ContainerLog, ContainerState, Source
from launcher.errors import NotFoundError
from launcher.kube.api import Json
from launcher.kube.resources import PODS
from launcher.kube.stream import stream
from launcher.names import JOB
from launcher.podlogs.batch import Item, LogGap
from launcher.watch import Reflector, Selector

if TYPE_CHECKING:
    from launcher.backends.cluster import ClusterBackend

_QUEUED = 64
_WAIT_S = 0.2
# A reason may change without the job or its pods changing: events and the PodGroup are asked now and then.
_ASK_S = 2.0
_IDLE_S = 60.0


def lines_of(
    backend: "ClusterBackend", name: str, *, follow: bool, since_s: float | None, attempt: int | None
) -> Iterator[Block | Notice]:
    """See `launcher.backends.Backend.logs`."""
    reading = _Reading(backend, name, follow=follow, since_s=since_s)
    try:
        reading.check(attempt)
        yield from reading.items()
    finally:
        reading.stop()


class _Reading:
    """One reader's view of a job: what is followed, and what was already told."""

    def __init__(self, backend: "ClusterBackend", name: str, *, follow: bool, since_s: float | None) -> None:
        self._backend = backend
        self._name = name
        self._follow = follow
        self._since_s = since_s
        self._stopped = threading.Event()
        self._changed = threading.Event()
        self._out: queue.Queue[tuple[str, Item]] = queue.Queue(_QUEUED)
        self._logs: dict[str, ContainerLog] = {}
        self._told = ""
        self._away = False
        api, fields = backend.api, f"metadata.name={name}"
        self._jobs = Reflector(api, Selector(backend.kind.resource, fields=fields), self._changed.set)
        self._pods = Reflector(api, Selector(PODS, labels=f"{JOB}={name}"), self._changed.set)

    def check(self, attempt: int | None) -> None:
        """A cluster deletes the pods of an attempt with it."""
        job = self._job()
        if job is not None and attempt is not None and attempt != self._backend.state_of(job, []).attempt:
            raise NotFoundError(
                f"job {self._name}: the cluster has its latest attempt's log alone; others are in its output folder"
            )

    def stop(self) -> None:
        """End all threads; those that wait for a server end soon."""
        self._stopped.set()
        self._jobs.stop()
        self._pods.stop()

    def items(self) -> Iterator[Block | Notice]:
        """Until the job has ended and all its lines have come; without follow, until those that there are have."""
        ended = caught_up = False
        while True:
            changed = self._changed.is_set()
            self._changed.clear()
            if changed or not ended:
                ended = self._job_ended()
                yield from self._news()
            self._start_logs()
            complete = all(log.done for log in self._logs.values()) and (ended or not self._follow)
            yield from self._queued(wait=not complete)
            if not caught_up and self._out.empty() and all(log.caught_up for log in self._logs.values()):
                caught_up = True
                yield Block(b"")
            if complete and self._out.empty():
                self._raise_errors()
                return

    def _queued(self, *, wait: bool) -> Iterator[Block | Notice]:
        """What has come, or the next that comes within a moment."""
        while True:
            try:
                key, item = self._out.get(timeout=_WAIT_S) if wait else self._out.get_nowait()
            except queue.Empty:
                return
            wait = False
            if isinstance(item, LogGap):
                yield Notice(f"--- {self._pod_name(key)}: {_bounds(item)}: {item.why} ---")
            elif item.data:
                yield Block(item.data, key, item.times)

    def _job(self) -> Json | None:
        return next(iter(self._jobs.objects()), None)

    def _job_ended(self) -> bool:
        for reflector in (self._jobs, self._pods):
            if reflector.error is not None:
                raise reflector.error
        job = self._job()
        return job is None or self._backend.kind.phase(job, self._pods.objects())[0].ended

    def _news(self) -> Iterator[Notice]:
        """Each change of the job's phase or of the reason why it waits, once."""
        away = self._jobs.away_since is not None or self._pods.away_since is not None
        if away != self._away:
            self._away = away
            yield Notice("the cluster does not answer; trying again …" if away else "the cluster answers again")
        job = self._job()
        if job is None or away or not self._follow:
            return
        phase, reason = self._backend.kind.phase(job, self._pods.objects())
        if phase is Phase.PENDING:
            reason = self._backend.state_of(job, self._pods.objects()).reason
        text = f"{phase.value}: {reason}" if reason else phase.value
        if text != self._told and not phase.ended:
            self._told = text
            yield Notice(f"job {self._name}: {text}")

    def _start_logs(self) -> None:
        for pod in self._pods.objects():
            for key, restarts in _instances(pod):
                if key not in self._logs:
                    source = self._source(pod, restarts)
                    self._logs[key] = ContainerLog(key, source, self._out, self._stopped)

    def _source(self, pod: Json, restarts: int) -> Source:
        api, uid = self._backend.api, pod["metadata"]["uid"]
        path = PODS.path(api.namespace, pod["metadata"]["name"], "log")

        def opened(query: Mapping[str, str]) -> Iterator[bytes]:
            return stream(api.credentials, path, query, stopped=self._stopped.is_set, idle_s=_IDLE_S)

        def state() -> ContainerState:
            current = next((one for one in self._pods.objects() if one["metadata"]["uid"] == uid), None)
            return ContainerState(gone=True) if current is None else _state(current, restarts)

        return Source(opened, state, follow=self._follow, since_s=self._since_s)

    def _pod_name(self, key: str) -> str:
        return f"pod {key.partition(' ')[0]}"

    def _raise_errors(self) -> None:
        for log in self._logs.values():
            if log.error is not None:
                raise log.error


def _trainer(pod: Json) -> Json | None:
    statuses = pod.get("status", {}).get("containerStatuses") or ()
    return next((one for one in statuses if one["name"] == "trainer"), None)


def _instances(pod: Json) -> list[tuple[str, int]]:
    """A key for each instance of the container that has begun and can still be read, with its restart count."""
    status = _trainer(pod)
    if status is None:
        return []
    now = status.get("state") or {}
    count = int(status.get("restartCount", 0))
    begun = [count - 1] if count else []
    if "running" in now or "terminated" in now:
        begun.append(count)
    meta = pod["metadata"]
    return [(f"{meta['name']} {meta['uid']} {number}", number) for number in begun]


def _state(pod: Json, restarts: int) -> ContainerState:
    status = _trainer(pod) or {}
    count = int(status.get("restartCount", 0))
    if count > restarts + 1:
        return ContainerState(gone=True)
    return ContainerState(ended="terminated" in (status.get("state") or {}), previous=count == restarts + 1)


def _bounds(gap: LogGap) -> str:
    first, last = _clock(gap.first_ns), _clock(gap.last_ns)
    if first and last:
        return f"lines between {first} and {last} are lost"
    return f"lines after {first} may be lost" if first else "its lines are lost"


def _clock(nanoseconds: int | None) -> str:
    if nanoseconds is None:
        return ""
    return datetime.fromtimestamp(nanoseconds / 1e9, timezone.utc).strftime("%H:%M:%S.%f")[:-3] + "Z"
