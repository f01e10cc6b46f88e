"""A container instance's log comes whole through cuts, restarts and deletion, or the loss is announced."""

import random
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.kube.resources import PODS
from launcher.podlogs.errors import Timing
from launcher.podlogs.merge import Merged
from launcher.podlogs.stop import Stop
from tests.cluster.support import line_printer
from tests.cluster.support.cutting_proxy import Cutter
from tests.cluster.support.pod_logs import Bench, Seen, bench_on, until
from tests.cluster.support.terminal import port_of
from tests.cluster.testbed.cluster import Cluster

# test_log_following.py has the launcher follow 100,000 lines over 200 cuts.
LINES = 20_000
CUTS = 40


@pytest.fixture
def bench(cluster: Cluster, namespace: str, tmp_path: Path) -> Iterator[Bench]:
    with bench_on(cluster, namespace, tmp_path) as one:
        yield one


def test_no_line_is_lost_or_repeated_over_many_cuts(bench: Bench) -> None:
    """However the cuts fall: what is left of them is used up by reading the ended log again."""
    seed = random.SystemRandom().randrange(2**32)
    sys.stdout.write(f"seed {seed}\n")
    uid = bench.create("cut", LINES, 2000, 10, 0)
    timing = Timing(idle_s=0.3)
    with Cutter(port_of(bench.cluster), every_s=0.15, silence_s=0.5, seed=seed) as cutter:
        while cutter.cuts < CUTS:
            seen = Seen().take_all(bench.log("cut", uid, port=cutter.port, timing=timing))
            assert seen.numbers == list(range(1, LINES + 1))
            assert not seen.gaps
            assert seen.caught_up == 1


def test_both_instances_of_a_container_that_fails_once_are_whole(bench: Bench) -> None:
    uid = bench.create("again", 100, 0, 10, 3, f"{line_printer.FOLDER}/done", restart="OnFailure")
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
    (pod,) = bench.api.list(PODS, fields="metadata.name=again")[0]
    (status,) = pod["status"]["containerStatuses"]
    assert (status["restartCount"], status["state"]["terminated"]["exitCode"]) == (1, 0)


def test_an_instance_that_ended_before_anybody_read_it_is_whole(bench: Bench) -> None:
    uid = bench.create("earlier", 2000, 1000, 10, 3, f"{line_printer.FOLDER}/done", restart="OnFailure")
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
    uid = bench.create("behind", 6000, 1000, 10, 3, f"{line_printer.FOLDER}/done", restart="OnFailure")
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
    # Where the pod was forgotten before that could be confirmed, nothing is said to be lost but what may come after.
    assert {(place, gap.first_ns) for place, gap in seen.gaps} <= {(len(seen.numbers), seen.newest_ns)}


def test_what_a_pod_writes_after_it_was_forgotten_is_said_to_be_lost(bench: Bench) -> None:
    uid = bench.create("forgotten", 10_000_000, 1000, 10, 0)
    until(lambda: bench.watcher.state(uid)().running)
    seen = Seen()
    with Cutter(port_of(bench.cluster), every_s=2, silence_s=1, seed=1) as cutter:
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


def test_a_pod_that_is_made_anew_under_its_name_is_not_read_as_the_one_before(bench: Bench) -> None:
    """As Volcano makes them, while the status is behind and the connection is cut."""
    uid = bench.create("anew", 10_000_000, 1000, 10, 0)
    until(lambda: bench.watcher.state(uid, behind_s=3)().running)
    seen = Seen()
    with Cutter(port_of(bench.cluster), every_s=600, silence_s=1, seed=1) as cutter:
        log = iter(bench.log("anew", uid, port=cutter.port, behind_s=3))
        while not seen.numbers:
            seen.take(next(log))
        kill = ("delete", "pod", "anew", "--namespace", bench.namespace, "--force", "--grace-period=0")
        with cutter.away():
            bench.cluster.kubectl(*kill)
            bench.cluster.create(line_printer.pod(bench.namespace, "anew", 5000, 1000, 10, 0))
            until(lambda: bench.watcher.uid("anew") not in {None, uid})
            another = bench.watcher.uid("anew")
            until(lambda: another is not None and bench.watcher.state(another)().running)
        seen.take_all(log)
    assert seen.numbers == list(range(1, len(seen.numbers) + 1))
    [(place, gap)] = seen.gaps
    assert place == len(seen.numbers)
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
