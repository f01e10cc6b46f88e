"""A container's log is complete in spite of cuts, restarts and deletion, or the loss is announced."""

import random
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.kube.resources import PODS
from launcher.podlogs.errors import Timing
from launcher.podlogs.merge import MergedLogs
from launcher.podlogs.transport import StopSignal
from tests.cluster.support import line_printer
from tests.cluster.support.cutting_proxy import CuttingProxy
from tests.cluster.support.pod_logs import LogContent, PodLogs, pod_logs_in, until
from tests.cluster.support.terminal import port_of
from tests.cluster.testbed.cluster import Cluster

# In test_log_following.py the launcher follows 100,000 lines over 200 cuts.
LINES = 20_000
CUTS = 40


@pytest.fixture
def pod_logs(cluster: Cluster, namespace: str, tmp_path: Path) -> Iterator[PodLogs]:
    with pod_logs_in(cluster, namespace, tmp_path) as new_pod_logs:
        yield new_pod_logs


def test_no_line_is_lost_or_repeated_over_many_cuts(pod_logs: PodLogs) -> None:
    """The number of cuts in one reading varies; the test reads the ended log again until it has made enough cuts."""
    seed = random.SystemRandom().randrange(2**32)
    sys.stdout.write(f"seed {seed}\n")
    uid = pod_logs.create("cut", LINES, 2000, 10, 0)
    timing = Timing(idle_s=0.3)
    with CuttingProxy(port_of(pod_logs.cluster), every_s=0.15, silence_s=0.5, seed=seed) as proxy:
        while proxy.cuts < CUTS:
            content = LogContent().add_all(pod_logs.log("cut", uid, port=proxy.port, timing=timing))
            assert content.numbers == list(range(1, LINES + 1))
            assert not content.gaps
            assert content.caught_up == 1


def test_the_logs_of_a_failed_container_and_its_restart_are_complete(pod_logs: PodLogs) -> None:
    uid = pod_logs.create("again", 100, 0, 10, 3, f"{line_printer.FOLDER}/done", restart="OnFailure")
    stop = StopSignal()
    content = {0: LogContent(), 1: LogContent()}
    with MergedLogs[int](stop) as merged:
        for restarts in content:
            merged.add(restarts, pod_logs.log("again", uid, restarts, stop=stop))
        merged.finish()
        for restarts, item in merged:
            content[restarts].add(item)
    for instance in content.values():
        assert instance.numbers == list(range(1, 101))
        assert not instance.gaps
    assert (content[0].other_lines, content[1].other_lines) == ([], [b"run before"])
    (pod,) = pod_logs.api.list(PODS, fields="metadata.name=again")[0]
    (status,) = pod["status"]["containerStatuses"]
    assert (status["restartCount"], status["state"]["terminated"]["exitCode"]) == (1, 0)


def test_the_log_of_a_container_that_ended_before_the_first_read_is_complete(pod_logs: PodLogs) -> None:
    uid = pod_logs.create("earlier", 2000, 1000, 10, 3, f"{line_printer.FOLDER}/done", restart="OnFailure")
    state = pod_logs.watcher.state(uid)
    until(lambda: state().restart_count == 1 and state().running)
    content = LogContent().add_all(pod_logs.log("earlier", uid, 0))
    assert (content.numbers, content.other_lines, content.gaps) == (list(range(1, 2001)), [], [])
    # A kubelet keeps the log of one ended container per pod, which is now the second one.
    until(lambda: state().pod_ended)
    second_read = LogContent().add_all(pod_logs.log("earlier", uid, 0))
    assert (second_read.numbers == content.numbers) != bool(second_read.gaps)


def test_a_late_status_does_not_lead_to_the_log_of_another_container(pod_logs: PodLogs) -> None:
    """The status says that the first container runs although the second one has started."""
    uid = pod_logs.create("behind", 6000, 1000, 10, 3, f"{line_printer.FOLDER}/done", restart="OnFailure")
    state = pod_logs.watcher.state(uid)
    until(lambda: state().restart_count == 1 and state().running)
    content = LogContent().add_all(pod_logs.log("behind", uid, 0, timing=Timing(settle_s=2), behind_s=1))
    assert (content.numbers, content.other_lines, content.gaps) == (list(range(1, 6001)), [], [])


def test_the_log_of_the_last_but_one_container_is_reported_lost(pod_logs: PodLogs) -> None:
    uid = pod_logs.create("often", 100, 0, 10, 3, restart="Always")
    until(lambda: pod_logs.watcher.state(uid)().restart_count >= 2)
    first = LogContent().add_all(pod_logs.log("often", uid, 0))
    assert (first.numbers, [gap.reason for _, gap in first.gaps]) == (
        [],
        ["the container restarted twice before its log had been read to the end"],
    )


def test_without_follow_a_running_container_is_read_to_its_current_end(pod_logs: PodLogs) -> None:
    uid = pod_logs.create("running", 10_000_000, 1000, 10, 0)
    until(lambda: pod_logs.watcher.state(uid)().running)
    content = LogContent().add_all(pod_logs.log("running", uid, follow=False))
    later = LogContent().add_all(pod_logs.log("running", uid, follow=False))
    assert content.numbers == list(range(1, len(content.numbers) + 1))
    assert len(later.numbers) > len(content.numbers)
    assert content.caught_up == later.caught_up == 1


def test_the_last_lines_of_a_deleted_pod_are_read(pod_logs: PodLogs) -> None:
    uid = pod_logs.create("deleted", 10_000_000, 1000, 10, 0)
    content = LogContent()
    log = iter(pod_logs.log("deleted", uid))
    while len(content.numbers) < 500:
        content.add(next(log))
    pod_logs.cluster.kubectl("delete", "pod", "deleted", "--namespace", pod_logs.namespace, "--wait=false")
    content.add_all(log)
    assert content.numbers == list(range(1, len(content.numbers) + 1))
    assert content.other_lines == [b"last words"]
    # If the pod was gone before the reader could confirm the end of its log, the only possible gap is after its last
    # line.
    assert {(place, gap.first_ns) for place, gap in content.gaps} <= {(len(content.numbers), content.newest_ns)}


def test_lines_after_a_forced_deletion_are_reported_lost(pod_logs: PodLogs) -> None:
    uid = pod_logs.create("forgotten", 10_000_000, 1000, 10, 0)
    until(lambda: pod_logs.watcher.state(uid)().running)
    content = LogContent()
    with CuttingProxy(port_of(pod_logs.cluster), every_s=2, silence_s=1, seed=1) as proxy:
        log = iter(pod_logs.log("forgotten", uid, port=proxy.port))
        while not content.numbers:
            content.add(next(log))
        pod_logs.cluster.kubectl(
            "delete", "pod", "forgotten", "--namespace", pod_logs.namespace, "--force", "--grace-period=0"
        )
        content.add_all(log)
    [(place, gap)] = content.gaps
    assert place == len(content.numbers)
    assert (gap.first_ns, gap.last_ns) == (content.stamps[-1], None)
    assert gap.reason == "the pod was deleted before its log had been read to the end"


def test_a_recreated_pod_of_the_same_name_is_not_read_as_the_earlier_one(pod_logs: PodLogs) -> None:
    """Volcano creates pods in this way; here the status is late and the connection is cut as well."""
    uid = pod_logs.create("recreated", 10_000_000, 1000, 10, 0)
    until(lambda: pod_logs.watcher.state(uid, behind_s=3)().running)
    content = LogContent()
    with CuttingProxy(port_of(pod_logs.cluster), every_s=600, silence_s=1, seed=1) as proxy:
        log = iter(pod_logs.log("recreated", uid, port=proxy.port, behind_s=3))
        while not content.numbers:
            content.add(next(log))
        delete = ("delete", "pod", "recreated", "--namespace", pod_logs.namespace, "--force", "--grace-period=0")
        with proxy.unavailable():
            pod_logs.cluster.kubectl(*delete)
            pod_logs.cluster.create(line_printer.pod(pod_logs.namespace, "recreated", 5000, 1000, 10, 0))
            until(lambda: pod_logs.watcher.uid("recreated") not in {None, uid})
            new_uid = pod_logs.watcher.uid("recreated")
            until(lambda: new_uid is not None and pod_logs.watcher.state(new_uid)().running)
        content.add_all(log)
    assert content.numbers == list(range(1, len(content.numbers) + 1))
    [(place, gap)] = content.gaps
    assert place == len(content.numbers)
    assert gap.reason == "the pod was deleted before its log had been read to the end"


def test_a_stop_ends_all_logs_at_once_and_leaves_no_thread(pod_logs: PodLogs) -> None:
    uids = {name: pod_logs.create(name, 10_000_000, 10, 10, 0) for name in ("one", "two")}
    stop = StopSignal()
    with MergedLogs[str](stop) as merged:
        for name, uid in uids.items():
            merged.add(name, pod_logs.log(name, uid, stop=stop))
        content = {name: LogContent() for name in uids}
        while not all(log.numbers for log in content.values()):
            item = merged.get()
            assert item is not None
            content[item[0]].add(item[1])
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("podlog")]
