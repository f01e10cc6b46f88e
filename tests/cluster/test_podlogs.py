"""A container instance's log comes whole through cuts, restarts, deletion and rotation, or the loss is announced."""

import functools
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from launcher.kube.api import Api, Json
from launcher.kube.connection import connect
from launcher.kube.place import Place as Where
from launcher.kube.resources import PODS
from launcher.podlogs.batch import Item, LogGap
from launcher.podlogs.container import ContainerLog
from launcher.podlogs.merge import Merged
from launcher.podlogs.patience import Timing
from launcher.podlogs.stamps import stamp_ns
from launcher.podlogs.state import ContainerState, Instance, container_state
from launcher.podlogs.stop import Stop
from launcher.watch import Reflector, Selector
from tests.cluster.testbed import cluster as testbed
from tests.cluster.testbed import printer
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.cutter import Cutter
from tests.cluster.waiting import until as until_seldom

pytestmark = pytest.mark.timeout(3600)

LINES = 100_000
CUTS = 200


@dataclass
class Seen:
    """What came of one log: the lines' numbers and stamps, other lines, and each gap with its place among them."""

    numbers: list[int] = field(default_factory=list)
    stamps: list[int] = field(default_factory=list)
    others: list[bytes] = field(default_factory=list)
    gaps: list[tuple[int, LogGap]] = field(default_factory=list)
    caught_up: int = 0

    def take(self, item: Item) -> None:
        if isinstance(item, LogGap):
            self.gaps.append((len(self.numbers), item))
            return
        self.caught_up += item.caught_up
        assert item.data == b"" or item.data.endswith(b"\n")
        for line, stamp in zip(item.data.splitlines(), item.times(), strict=True):
            if (match := re.match(rb"\[rank 0 cpu:0 #(\d+)\]", line)) is None:
                self.others.append(line)
            else:
                self.numbers.append(int(match[1]))
                self.stamps.append(stamp_ns(f"{stamp} ".encode()) or 0)

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


@dataclass(frozen=True)
class Bench:
    """A namespace in which pods print, and are watched."""

    cluster: Cluster
    namespace: str
    api: Api
    watcher: Watcher

    def create(self, name: str, *words: object, restart: str = "Never") -> str:
        """A pod's uid, once it is known."""
        self.cluster.create(printer.pod(self.namespace, name, *words, restart=restart))
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
    ) -> ContainerLog:
        credentials = self.api.credentials
        if port is not None:
            credentials = replace(credentials, server=f"https://127.0.0.1:{port}")
        instance = Instance(self.namespace, name, uid, "trainer", restarts)
        state = self.watcher.state(uid, behind_s=behind_s)
        return ContainerLog(credentials, instance, state, stop or Stop(), follow=follow, timing=timing)


until = functools.partial(until_seldom, every_s=0.02)


@contextmanager
def bench_on(cluster: Cluster, namespace: str, folder: Path) -> Iterator[Bench]:
    printer.load(cluster, folder)
    api = connect(Where(cluster.kubeconfig, None, namespace))
    watcher = Watcher(api)
    yield Bench(cluster, namespace, api, watcher)
    watcher.stop()


@pytest.fixture
def bench(cluster: Cluster, namespace: str, tmp_path: Path) -> Iterator[Bench]:
    with bench_on(cluster, namespace, tmp_path) as one:
        yield one


def server_port(bench: Bench) -> int:
    return int(bench.api.credentials.server.rpartition(":")[2])


def test_no_line_is_lost_or_repeated_over_200_cuts(bench: Bench) -> None:
    """However the cuts fall: what is left of the 200 is used up by reading the ended log again."""
    seed = random.SystemRandom().randrange(2**32)
    sys.stdout.write(f"seed {seed}\n")
    uid = bench.create("cut", LINES, 3000, 10, 0)
    timing = Timing(idle_s=0.3)
    with Cutter(server_port(bench), every_s=0.15, silence_s=1, seed=seed) as cutter:
        while cutter.cuts < CUTS:
            seen = Seen().take_all(bench.log("cut", uid, port=cutter.port, timing=timing))
            assert seen.numbers == list(range(1, LINES + 1))
            assert not seen.gaps
            assert seen.caught_up == 1


def test_both_instances_of_a_container_that_fails_once_are_whole(bench: Bench) -> None:
    uid = bench.create("again", 100, 0, 10, 3, f"{printer.FOLDER}/done", restart="OnFailure")
    stop = Stop()
    seen = {0: Seen(), 1: Seen()}
    with Merged[int](stop) as merged:
        for restarts in seen:
            merged.add(restarts, bench.log("again", uid, restarts, stop=stop))
        merged.finish()
        for restarts, item in merged:
            seen[restarts].take(item)
    for one in seen.values():
        assert one.numbers == list(range(1, 101))
        assert not one.gaps
    assert (seen[0].others, seen[1].others) == ([], [b"run before"])
    state = bench.watcher.state(uid)()
    assert (state.restart_count, state.terminated and state.terminated.exit_code) == (1, 0)


def test_an_instance_that_ended_before_anybody_read_it_is_whole(bench: Bench) -> None:
    uid = bench.create("earlier", 2000, 1000, 10, 3, f"{printer.FOLDER}/done", restart="OnFailure")
    state = bench.watcher.state(uid)
    until(lambda: state().restart_count == 1 and state().running)
    seen = Seen().take_all(bench.log("earlier", uid, 0))
    assert (seen.numbers, seen.others, seen.gaps) == (list(range(1, 2001)), [], [])
    # A kubelet keeps the logs of one ended instance, which now is the second.
    until(lambda: state().pod_ended)
    again = Seen().take_all(bench.log("earlier", uid, 0))
    assert (again.numbers == seen.numbers) != bool(again.gaps)


def test_a_status_that_is_behind_does_not_lead_to_another_instance(bench: Bench) -> None:
    """It says that the first one runs when that has ended and the second one has begun."""
    uid = bench.create("behind", 6000, 1000, 10, 3, f"{printer.FOLDER}/done", restart="OnFailure")
    state = bench.watcher.state(uid)
    until(lambda: state().restart_count == 1 and state().running)
    seen = Seen().take_all(bench.log("behind", uid, 0, timing=Timing(settle_s=2), behind_s=1))
    assert (seen.numbers, seen.others, seen.gaps) == (list(range(1, 6001)), [], [])


def test_the_log_of_an_instance_before_the_previous_one_is_said_to_be_lost(bench: Bench) -> None:
    uid = bench.create("often", 100, 0, 10, 3, restart="Always")
    until(lambda: bench.watcher.state(uid)().restart_count >= 2)
    first = Seen().take_all(bench.log("often", uid, 0))
    assert (first.numbers, [gap.why for _, gap in first.gaps]) == (
        [],
        ["the container restarted twice before its log had been read to the end"],
    )


def test_a_running_container_is_read_as_far_as_it_has_come_where_nobody_wants_more(bench: Bench) -> None:
    uid = bench.create("running", 10_000_000, 1000, 10, 0)
    until(lambda: bench.watcher.state(uid)().running)
    seen = Seen().take_all(bench.log("running", uid, follow=False))
    more = Seen().take_all(bench.log("running", uid, follow=False))
    assert seen.numbers == list(range(1, len(seen.numbers) + 1))
    assert len(more.numbers) > len(seen.numbers)
    assert seen.caught_up == more.caught_up == 1


def test_the_last_words_of_a_pod_that_is_deleted_are_heard(bench: Bench) -> None:
    uid = bench.create("deleted", 10_000_000, 1000, 10, 0)
    seen = Seen()
    log = iter(bench.log("deleted", uid))
    while len(seen.numbers) < 500:
        seen.take(next(log))
    bench.cluster.kubectl("delete", "pod", "deleted", "--namespace", bench.namespace, "--wait=false")
    seen.take_all(log)
    assert seen.numbers == list(range(1, len(seen.numbers) + 1))
    assert seen.others == [b"last words"]
    assert not seen.gaps


def test_what_a_pod_writes_after_it_was_forgotten_is_said_to_be_lost(bench: Bench) -> None:
    uid = bench.create("forgotten", 10_000_000, 1000, 10, 0)
    until(lambda: bench.watcher.state(uid)().running)
    seen = Seen()
    with Cutter(server_port(bench), every_s=2, silence_s=1, seed=1) as cutter:
        log = iter(bench.log("forgotten", uid, port=cutter.port))
        while not seen.numbers:
            seen.take(next(log))
        bench.cluster.kubectl(
            "delete", "pod", "forgotten", "--namespace", bench.namespace, "--force", "--grace-period=0"
        )
        seen.take_all(log)
    [(place, gap)] = seen.gaps
    assert place == len(seen.numbers)
    assert (gap.first_ns, gap.last_ns) == (seen.stamps[-1], None)
    assert gap.why == "the pod was deleted before its log had been read to the end"


def test_a_stop_ends_all_logs_at_once_and_leaves_no_thread(bench: Bench) -> None:
    uids = {name: bench.create(name, 10_000_000, 10, 10, 0) for name in ("one", "two")}
    stop = Stop()
    with Merged[str](stop) as merged:
        for name, uid in uids.items():
            merged.add(name, bench.log(name, uid, stop=stop))
        seen = {name: Seen() for name in uids}
        while not all(one.numbers for one in seen.values()):
            found = merged.get()
            assert found is not None
            seen[found[0]].take(found[1])
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("podlog")]


@pytest.fixture(scope="module")
def rotating() -> Iterator[Cluster]:
    """A cluster whose kubelets keep very little of a log."""
    with testbed.running(nodes=1, npus=0, container_log_max_size="64Ki", container_log_max_files=2) as one:
        yield one


def test_every_loss_by_rotation_lies_in_an_announced_gap(cluster: Cluster, rotating: Cluster, tmp_path: Path) -> None:
    """It needs `cluster` only for what that makes sure of: that there can be one here."""
    assert cluster.kubeconfig != rotating.kubeconfig
    testbed.namespace(rotating, "rotation")
    with bench_on(rotating, "rotation", tmp_path) as bench:
        state = bench.watcher.state(uid := bench.create("much", 40_000, 1000, 60, 0))
        until(lambda: state().running)
        with Cutter(server_port(bench), every_s=1, silence_s=15, seed=2) as cutter:
            seen = Seen().take_all(bench.log("much", uid, port=cutter.port))
    pairs = zip([0, *seen.numbers], [*seen.numbers, 40_001], strict=True)
    holes = {place: (before, after) for place, (before, after) in enumerate(pairs) if after != before + 1}
    assert all(after > before for before, after in holes.values()), "in order, none repeated"
    assert holes, "or this test proves nothing"
    gaps = dict(seen.gaps)
    assert set(holes) <= set(gaps)
    for place in holes:
        gap = gaps[place]
        assert gap.first_ns == seen.stamps[place - 1]
        assert gap.last_ns is not None
        assert place == len(seen.stamps) or gap.last_ns == seen.stamps[place]
