"""A namespace in which pods print numbered lines, and the lines that the reader of one container's log returns."""

import functools
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from launcher.jobs import LogLoss
from launcher.kube.access import ClusterAccess as ClusterPlace
from launcher.kube.api import Api, Json, connect
from launcher.kube.reflector import Reflector, Selector
from launcher.kube.resources import PODS
from launcher.podlogs.container import ContainerLog
from launcher.podlogs.errors import Timing
from launcher.podlogs.lines import LogPiece, timestamp_ns, timestamps, without_timestamps
from launcher.podlogs.state import ContainerState, Instance, container_state
from launcher.podlogs.transport import StopSignal
from tests.cluster.support import line_printer
from tests.cluster.support.waiting import until as until_every
from tests.cluster.testbed.cluster import Cluster

until = functools.partial(until_every, every_s=0.02)


@dataclass
class LogContent:
    """The content of one log: the lines' numbers and stamps, other lines, and each gap with its place among them."""

    numbers: list[int] = field(default_factory=list)
    stamps: list[int] = field(default_factory=list)
    other_lines: list[bytes] = field(default_factory=list)
    gaps: list[tuple[int, LogLoss]] = field(default_factory=list)
    caught_up: int = 0
    newest_ns: int | None = None

    def add(self, piece: LogPiece) -> None:
        if isinstance(piece, LogLoss):
            self.gaps.append((len(self.numbers), piece))
            return
        self.caught_up += not piece
        assert not piece or piece.endswith(b"\n")
        for line, stamp in zip(without_timestamps(piece).splitlines(), timestamps(piece), strict=True):
            self.newest_ns = timestamp_ns(f"{stamp} ".encode()) or 0
            if (match := re.match(rb"\[rank 0 cpu:0 #(\d+)\]", line)) is None:
                self.other_lines.append(line)
            else:
                self.numbers.append(int(match[1]))
                self.stamps.append(self.newest_ns)

    def add_all(self, pieces: Iterable[LogPiece]) -> "LogContent":
        for piece in pieces:
            self.add(piece)
        return self


class PodWatcher:
    """The pods of a namespace, and the state of a pod's container while the pod exists."""

    def __init__(self, api: Api) -> None:
        self._history: list[tuple[float, list[Json]]] = [(0, [])]
        self._reflector: Reflector | None = None
        self._reflector = Reflector(api, Selector(PODS), self._record)
        self._record()

    def _record(self) -> None:
        if self._reflector is not None:
            self._history.append((time.monotonic(), self._reflector.objects()))

    def stop(self) -> None:
        assert self._reflector is not None
        self._reflector.stop()

    def uid(self, name: str) -> str | None:
        pods = self._history[-1][1]
        return next((pod["metadata"]["uid"] for pod in pods if pod["metadata"]["name"] == name), None)

    def state(self, uid: str, *, behind_s: float = 0) -> Callable[[], ContainerState]:
        """Return a function that returns the current state, or the state of `behind_s` seconds ago."""

        def state() -> ContainerState:
            until_s = time.monotonic() - behind_s
            snapshots = [pods for moment, pods in self._history if moment <= until_s]
            states = [next((pod for pod in pods if pod["metadata"]["uid"] == uid), None) for pods in snapshots]
            if states[-1] is None:
                return ContainerState(uid, gone=any(states))
            return container_state(states[-1], "trainer")

        return state


@dataclass(frozen=True)
class PodLogs:
    """A namespace whose pods print lines, and a watch of those pods."""

    cluster: Cluster
    namespace: str
    api: Api
    watcher: PodWatcher

    def create(self, name: str, *words: object, restart: str = "Never") -> str:
        """Create a pod and return its uid."""
        self.cluster.create(line_printer.pod(self.namespace, name, *words, restart=restart))
        until(lambda: self.watcher.uid(name) is not None)
        uid = self.watcher.uid(name)
        assert uid is not None
        return uid

    def log(
        self,
        name: str,
        uid: str,
        restarts: int = 0,
        *,
        stop: StopSignal | None = None,
        port: int | None = None,
        timing: Timing | None = None,
        follow: bool = True,
        behind_s: float = 0,
    ) -> ContainerLog:
        credentials = self.api.credentials
        if port is not None:
            credentials = replace(credentials, server=f"https://127.0.0.1:{port}")
        instance = Instance(self.namespace, name, uid, "trainer", restarts)
        state = self.watcher.state(uid, behind_s=behind_s)

        def is_there() -> bool:
            return [pod["metadata"]["uid"] for pod in self.api.list(PODS, fields=f"metadata.name={name}")[0]] == [uid]

        return ContainerLog(
            credentials,
            instance,
            state,
            stop or StopSignal(),
            follow=follow,
            timing=timing or Timing(),
            is_there=is_there,
        )


@contextmanager
def pod_logs_in(cluster: Cluster, namespace: str, folder: Path) -> Iterator[PodLogs]:
    """Load the image of the line printer, made in `folder`, and watch the pods of a namespace."""
    line_printer.load_image(cluster, folder)
    api = connect(ClusterPlace(cluster.kubeconfig, None, namespace))
    watcher = PodWatcher(api)
    try:
        yield PodLogs(cluster, namespace, api, watcher)
    finally:
        watcher.stop()
