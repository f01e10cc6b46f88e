"""The log of a job on a cluster: the lines of all its pods as they come and go, and notices for the reader.

`job_watch` knows the job and its pods; `launcher.podlogs` reads the log of each container instance and merges them. A
slow reader slows them down. The job's status decides when the log ends.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial

from launcher.cluster.job_watch import JobWatch, StateOf
from launcher.errors import LauncherError, NotFoundError
from launcher.jobs import Ended, Explanation, LogBlock, LogItem, LogLoss, Notice, Phase
from launcher.kinds import Kind
from launcher.kinds.labels import CONTAINER
from launcher.kinds.objects import attempt_number
from launcher.kube.api import Api, Json
from launcher.kube.retry import AWAY, BACK, GIVE_UP_S
from launcher.podlogs.container import ContainerLog
from launcher.podlogs.lines import LogPiece, timestamps, without_timestamps
from launcher.podlogs.merge import MergedLogs
from launcher.podlogs.state import Instance, container_state
from launcher.podlogs.transport import StopSignal

_WAIT_S = 0.2
# The trainer's supervisor prints this last.
_LAST_LINE = b" ended lines="
_WAITING = (Phase.PENDING.value, Phase.SUSPENDED.value)


def follow_job(
    api: Api,
    kind: Kind,
    name: str,
    state_of: StateOf,
    *,
    follow: bool,
    since_s: float | None,
    attempt: int | None,
    explain: Callable[[], Explanation],
) -> Iterator[LogItem]:
    """Return the job's log; `launcher.jobs.Jobs.logs` says what comes. The first requests are sent at once.

    Args:
        explain: says why the job waits, when it has waited for a while.

    Raises:
        NotFoundError: only the job's output folder has the log of this attempt.
        LauncherError: the cluster does not answer, or refuses.
    """
    watch = JobWatch(api, kind, name, state_of)
    job = watch.job
    if job is not None and attempt not in (None, latest := attempt_number(job)):
        watch.close()
        # The cluster deletes an attempt's pods together with it.
        raise NotFoundError(
            f"job {name}: there is no attempt {attempt} on the cluster, which has only the latest attempt, {latest}; "
            "the output folder has the logs of earlier ones"
        )
    return _follow(watch, explain, follow=follow, since_s=since_s)


def _follow(
    watch: JobWatch, explain: Callable[[], Explanation], *, follow: bool, since_s: float | None
) -> Iterator[LogItem]:
    stop = StopSignal()
    with MergedLogs[Instance](stop) as merged, closing(watch):
        yield from LogFollower(watch, merged, stop, follow=follow, since_s=since_s, explain=explain).items()


@dataclass
class LogFollower:
    """One reader of a job's log: which logs are read, and which notices the reader has got.

    Attributes:
        ask_s: seconds between two questions why the job waits: events and PodGroups change without waking the
            reflectors.
        quiet_s: seconds without new lines until the reader is shown what is there.
        stuck_s: seconds without new lines after the job's end until the follower gives up. Long enough for several
            connections, because a silent one is replaced only after a while.
        present_s: the same for a reader that does not follow.
        explain: says why the job waits; None if the reader is not told.
        explain_s: seconds for which the job waits before each question.
    """

    watch: JobWatch
    merged: MergedLogs[Instance]
    stop: StopSignal
    follow: bool
    since_s: float | None
    ask_s: float = 2.0
    quiet_s: float = 10.0
    stuck_s: float = GIVE_UP_S
    present_s: float = 45.0
    explain: Callable[[], Explanation] | None = None
    explain_s: float = 60.0
    behind: set[Instance] = field(default_factory=set)
    started: set[Instance] = field(default_factory=set)
    complete: set[Instance] = field(default_factory=set)
    shown_statuses: list[str] = field(default_factory=list)
    waits_since: float | None = None
    explained: str = ""
    disconnected: bool = False
    quiet_since: float = field(default_factory=time.monotonic)

    def items(self) -> Iterator[LogItem]:
        """Yield until the job has ended and all its lines have come; without follow, until the present lines have."""
        caught_up = last = waits = False
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
            if not last or piece is not None:
                continue
            give_up_s = self.stuck_s if self.follow else self.present_s
            if self._quiet_s() > give_up_s:
                yield from (LogLoss("its node does not give the rest of its log", source=pod) for pod in self._unread())
                break
            if not waits and self._quiet_s() > self.quiet_s and (pods := self._unread()):
                waits = True
                yield Notice(f"waiting up to {give_up_s:g} s for the rest of the log of {', '.join(pods)} …")
        if self.follow and (outcome := self.watch.outcome()) is not None:
            yield Ended(outcome)

    def _quiet_s(self) -> float:
        """Return for how long no line has come although the cluster answers."""
        if self.disconnected:
            self.quiet_since = time.monotonic()
        return time.monotonic() - self.quiet_since

    def _unread(self) -> list[str]:
        """Return the pods whose logs have not been read to their end."""
        return sorted({_instance_name(instance) for instance in self.merged.open - self.complete})

    def log_items(self, instance: Instance, piece: LogPiece) -> Iterator[LogBlock | LogLoss]:
        """Yield what the reader gets of one piece of a container's log."""
        if isinstance(piece, LogLoss):
            # A container that is removed after its supervisor's last line loses nothing.
            if not (piece.at_end and instance in self.complete):
                yield replace(piece, source=_instance_name(instance))
        elif not piece:
            self.behind.discard(instance)
        else:
            data, times = without_timestamps(piece), partial(timestamps, piece)
            stream = f"{_instance_name(instance)}, uid {instance.pod_uid}, restart {instance.restart_count}"
            if instance.container == CONTAINER:
                if _LAST_LINE in data[-4096:]:
                    self.complete.add(instance)
                yield LogBlock(data, stream, times)
            else:
                # The prefix keeps its lines from being read as a device's, whatever it writes.
                prefix = f"[{instance.container}] ".encode()
                yield LogBlock(prefix + data[:-1].replace(b"\n", b"\n" + prefix) + b"\n", stream, times)

    def notices(self) -> Iterator[Notice | Explanation]:
        """Yield each phase of the job, and each reason why it waits, once: some reasons alternate for ever.

        After a minute of waiting, why it waits comes with evidence and the next step.

        A reader that does not follow is told only why the job waits.
        """
        if self.watch.disconnected != self.disconnected:
            self.disconnected = self.watch.disconnected
            yield Notice(AWAY if self.disconnected else BACK)
        status = "" if self.disconnected else self.watch.status()
        if self.disconnected or not (self.follow or status.startswith(_WAITING)):
            return
        shown, key = self.shown_statuses, self.watch.status_key(status)
        if shown and key.partition(":")[0] != shown[0].partition(":")[0]:
            shown.clear()
        if key and key not in shown:
            shown.append(key)
            yield Notice(f"job {self.watch.name}: {status}")
        if self.follow:
            yield from self._explanation(waits=status.startswith(_WAITING))

    def _explanation(self, *, waits: bool) -> Iterator[Explanation]:
        """Yield why the job waits, and again when another cause has become the first."""
        now = time.monotonic()
        if not waits or self.explain is None:
            self.waits_since, self.explained = None, ""
            return
        self.waits_since = now if self.waits_since is None else self.waits_since
        if now - self.waits_since < self.explain_s:
            return
        self.waits_since = now
        try:
            explanation = self.explain()
        except LauncherError:
            return  # The lines of the log matter more; the question comes again.
        rule = explanation.causes[0].rule if explanation.causes else ""
        if rule != self.explained:
            self.explained = rule
            yield explanation

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
