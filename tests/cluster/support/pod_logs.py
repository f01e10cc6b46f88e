"""A namespace in which pods print numbered lines, and what the reader of one container's log makes of them."""

import functools
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from launcher.kube.api import Api, Json
from launcher.kube.connection import connect
from launcher.kube.place import Place as Where
from launcher.kube.reflector import Reflector, Selector
from launcher.kube.resources import PODS
from launcher.podlogs.batch import Item, LogGap
from launcher.podlogs.container import ContainerLog
from launcher.podlogs.errors import Timing
from launcher.podlogs.stamps import stamp_ns
from launcher.podlogs.state import ContainerState, Instance, Place, container_state
from launcher.podlogs.stop import Stop
from launcher.podlogs.transport import Transport
from tests.cluster.support import line_printer
from tests.cluster.support.waiting import until as until_seldom
from tests.cluster.testbed.cluster import Cluster

until = functools.partial(until_seldom, every_s=0.02)


@dataclass
class Seen:
    """What came of one log: the lines' numbers and stamps, other lines, and each gap with its place among them."""

    numbers: list[int] = field(default_factory=list)
    stamps: list[int] = field(default_factory=list)
    others: list[bytes] = field(default_factory=list)
    gaps: list[tuple[int, LogGap]] = field(default_factory=list)
    caught_up: int = 0
    newest_ns: int | None = None

    def take(self, item: Item) -> None:
        if isinstance(item, LogGap):
            self.gaps.append((len(self.numbers), item))
            return
        self.caught_up += item.caught_up
        assert item.data == b"" or item.data.endswith(b"\n")
        for line, stamp in zip(item.data.splitlines(), item.times(), strict=True):
            self.newest_ns = stamp_ns(f"{stamp} ".encode()) or 0
            if (match := re.match(rb"\[rank 0 cpu:0 #(\d+)\]", line)) is None:
                self.others.append(line)
            else:
                self.numbers.append(int(match[1]))
                self.stamps.append(self.newest_ns)

    def take_all(self, items: Iterable[Item]) -> "Seen":
        for item in items:
            self.take(item)
        return self


class Watcher:
    """The pods of a namespace, and what is known of a pod's container while it exists."""

    def __init__(self, api: Api) -> None:
        self._history: list[tuple[float, list[Json]]] = [(0, [])]
        self._reflector: Reflector | None = None
        self._reflector = Reflector(api, Selector(PODS), self._note)
        self._note()

    def _note(self) -> None:
        if self._reflector is not None:
            self._history.append((time.monotonic(), self._reflector.objects()))

    def stop(self) -> None:
        assert self._reflector is not None
        self._reflector.stop()

    def uid(self, name: str) -> str | None:
        pods = self._history[-1][1]
        return next((pod["metadata"]["uid"] for pod in pods if pod["metadata"]["name"] == name), None)

    def state(self, uid: str, *, behind_s: float = 0) -> Callable[[], ContainerState]:
        """Its state whenever it is asked for, or as it was a moment before."""

        def state() -> ContainerState:
            until_s = time.monotonic() - behind_s
            told = [pods for moment, pods in self._history if moment <= until_s]
            mine = [next((pod for pod in pods if pod["metadata"]["uid"] == uid), None) for pods in told]
            if mine[-1] is None:
                return ContainerState(uid, gone=any(mine))
            return container_state(mine[-1], "trainer")

        return state


class AnsweredLog(ContainerLog):
    """Knows how often the server has been asked for it: `answers`."""

    answers = 0

    def _read(self, transport: Transport, place: Place) -> Iterator[Item]:
        self.answers += 1
        return super()._read(transport, place)


@dataclass(frozen=True)
class Bench:
    """A namespace in which pods print, and are watched."""

    cluster: Cluster
    namespace: str
    api: Api
    watcher: Watcher

    def create(self, name: str, *words: object, restart: str = "Never") -> str:
        """A pod's uid, once it is known."""
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
        stop: Stop | None = None,
        port: int | None = None,
        timing: Timing | None = None,
        follow: bool = True,
        behind_s: float = 0,
    ) -> AnsweredLog:
        credentials = self.api.credentials
        if port is not None:
            credentials = replace(credentials, server=f"https://127.0.0.1:{port}")
        instance = Instance(self.namespace, name, uid, "trainer", restarts)
        state = self.watcher.state(uid, behind_s=behind_s)

        def is_there() -> bool:
            return [pod["metadata"]["uid"] for pod in self.api.list(PODS, fields=f"metadata.name={name}")[0]] == [uid]

        return AnsweredLog(
            credentials, instance, state, stop or Stop(), follow=follow, timing=timing, is_there=is_there
        )


@contextmanager
def bench_on(cluster: Cluster, namespace: str, folder: Path) -> Iterator[Bench]:
    """Load the program that prints, made in `folder`, and watch the pods of a namespace."""
    line_printer.load(cluster, folder)
    api = connect(Where(cluster.kubeconfig, None, namespace))
    watcher = Watcher(api)
    try:
        yield Bench(cluster, namespace, api, watcher)
    finally:
        watcher.stop()
