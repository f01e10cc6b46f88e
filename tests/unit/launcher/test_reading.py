"""The reading of a job's log ends with its last line, or when no node gives the rest of the log."""

import time
from collections.abc import Iterator
from threading import Event
from typing import Any, cast

import pytest

from launcher.cluster.follow import FollowLimits, LogFollower
from launcher.jobs import Block, Loss
from launcher.kube.place import Credentials
from launcher.output.lines import Demultiplexer, Line
from launcher.podlogs.batch import Batch, Item, LogGap, batch_of
from launcher.podlogs.container import ContainerLog
from launcher.podlogs.merge import Merged
from launcher.podlogs.state import ContainerState, Instance, Termination
from launcher.podlogs.stop import Stop
from trainer.topology.ports import free_port

INSTANCE = Instance("training", "pod", "uid", "trainer")
LINE = Batch(b"last\n", b"2026-11-25T00:00:00Z last\n")


class Job:
    """A job that ends when its time is over; the tests read its pods themselves."""

    name = "job"
    disconnected = False
    api = None
    pods: tuple[()] = ()

    def __init__(self, lasts_s: float) -> None:
        self.changed = Event()
        self._until = time.monotonic() + lasts_s

    def has_ended(self) -> bool:
        return time.monotonic() >= self._until

    def status(self) -> str:
        return ""

    def outcome(self) -> None:
        return None


def read(log: Any, stop: Stop, *, lasts_s: float) -> list[Any]:
    with Merged[Instance](stop) as merged:
        merged.add(INSTANCE, log)
        limits = FollowLimits(ask_s=0.1, stuck_s=0.5)
        follower = LogFollower(cast("Any", Job(lasts_s)), merged, stop, follow=True, since_s=None, limits=limits)
        return [item for item in follower.items() if item != Block(b"")]


def test_a_log_line_that_arrives_after_the_jobs_end_is_read() -> None:
    def late() -> Iterator[Item]:
        time.sleep(1.2)
        yield LINE

    items = read(late(), Stop(), lasts_s=1.0)
    assert [item.data for item in items if isinstance(item, Block)] == [b"last\n"]
    assert not any(isinstance(item, Loss) for item in items)


def test_reasons_that_alternate_are_shown_once_each() -> None:
    """A missing image: the kubelet reports it, waits, and reports it again, until the user ends the job."""
    statuses = ["Pending: ErrImagePull", "Pending: ImagePullBackOff"] * 3 + ["Running"] + ["Pending: ErrImagePull"] * 2
    job: Any = Job(0)
    job.status = lambda: statuses.pop(0)
    follower = LogFollower(job, cast("Any", None), Stop(), follow=True, since_s=None)
    notices = [notice.text for _ in range(len(statuses)) for notice in follower.notices()]
    assert notices == [
        f"job job: {text}" for text in dict.fromkeys(["Pending: ErrImagePull", "Pending: ImagePullBackOff"])
    ] + ["job job: Running", "job job: Pending: ErrImagePull"]


def test_a_log_that_no_node_gives_any_more_is_reported_as_lost() -> None:
    stop = Stop()

    def never() -> Iterator[Item]:
        yield LINE
        stop.wait(60)

    items = read(never(), stop, lasts_s=0.0)
    assert items[-1] == Loss("pod pod: its node does not give the rest of its log")


def test_a_log_is_reported_as_lost_if_the_node_fails_the_pod_and_forgets_its_container() -> None:
    """A kubelet that starts before its device plugin fails the running pods and reports no containers of them."""
    states = iter([ContainerState("uid", running=True, scheduled=True)])
    failed = ContainerState("uid", scheduled=True, pod_ended=True)
    nowhere = Credentials(f"http://127.0.0.1:{free_port()}", None, None, None, lambda: None, None, True, None)
    items = list(ContainerLog(nowhere, INSTANCE, lambda: next(states, failed), Stop()))
    assert [item.why for item in items if isinstance(item, LogGap)] == [
        "its node has failed the pod, and forgotten its container"
    ]


@pytest.mark.parametrize(
    ("last", "lost"),
    [
        (ContainerState("uid", scheduled=True, gone=True), False),
        (ContainerState("uid", scheduled=True, running=True, gone=True), True),
        (ContainerState("uid", scheduled=True, terminated=Termination(), pod_ended=True, gone=True), True),
        (ContainerState("uid", scheduled=True, gone=True, unseen=True), True),
        (ContainerState("uid", gone=True, unseen=True), False),
    ],
)
def test_a_pod_that_was_deleted_between_two_polls_is_reported_as_lost_if_it_can_have_logged(
    last: ContainerState, lost: bool
) -> None:
    states = iter([ContainerState("uid", scheduled=True)])
    nowhere = Credentials(f"http://127.0.0.1:{free_port()}", None, None, None, lambda: None, None, True, None)
    items = list(ContainerLog(nowhere, INSTANCE, lambda: next(states, last), Stop()))
    reasons = ["the pod was deleted before its log had been read to the end"] if lost else []
    assert [item.why for item in items if isinstance(item, LogGap)] == reasons


def test_lines_of_another_container_are_prefixed_and_count_for_no_rank() -> None:
    other = Instance("training", "pod", "uid", "data")
    stop, counts = Stop(), Demultiplexer()
    with Merged[Instance](stop) as merged:
        follower = LogFollower(cast("Any", Job(0)), merged, stop, follow=True, since_s=None)
        stamped = b"2026-11-25T00:00:00.000000000Z [rank 0 cpu:0 #7] a\n2026-11-25T00:00:00.000000001Z b\n"
        (block,) = follower.log_items(other, batch_of(stamped))
        (loss,) = follower.log_items(other, LogGap(None, None, "why"))
    assert isinstance(block, Block)
    assert block.data == b"[data] [rank 0 cpu:0 #7] a\n[data] b\n"
    assert block.stamps is not None
    assert len(block.stamps()) == 2
    assert counts.feed(block.data) == [Line(line, line) for line in block.data.splitlines()]
    assert (counts.lines, counts.missing) == (0, 0)
    assert loss == Loss("pod pod, container data: any lines that it wrote are lost: why")
