"""The reading of a job's log ends with its last line, or when the node does not give that line any more."""

import threading
import time
from collections.abc import Iterator
from threading import Event
from typing import Any, cast

import pytest

from launcher.cluster.follow import LogFollower
from launcher.errors import UnreachableError
from launcher.jobs import Cause, Explanation, JobRef, JobState, LogBlock, LogLoss, Notice, Phase
from launcher.kube.access import Credentials
from launcher.output.lines import Demultiplexer, LogLine
from launcher.podlogs.container import ContainerLog
from launcher.podlogs.lines import LogPiece
from launcher.podlogs.merge import MergedLogs
from launcher.podlogs.state import ContainerEnd, ContainerState, Instance
from launcher.podlogs.transport import StopSignal
from trainer.topology.ports import free_port

INSTANCE = Instance("training", "pod", "uid", "trainer")
LINE = b"2026-11-25T00:00:00.000000000Z last\n"


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

    def status_key(self, status: str) -> str:
        return status

    def outcome(self) -> None:
        return None


def read(log: Any, stop: StopSignal, *, lasts_s: float, stuck_s: float = 0.5) -> list[Any]:
    with MergedLogs[Instance](stop) as merged:
        merged.add(INSTANCE, log)
        job = cast("Any", Job(lasts_s))
        follower = LogFollower(job, merged, stop, follow=True, since_s=None, ask_s=0.1, stuck_s=stuck_s)
        return [item for item in follower.items() if item != LogBlock(b"")]


def test_a_silent_job_has_time_for_its_last_lines() -> None:
    def late() -> Iterator[LogPiece]:
        time.sleep(2.2)  # until after the end of the job, but before the follower gives up
        yield LINE

    # A busy machine can be more than a second late.
    items = read(late(), StopSignal(), lasts_s=2.0, stuck_s=1.9)
    assert [item.data for item in items if isinstance(item, LogBlock)] == [b"last\n"]
    assert not any(isinstance(item, LogLoss) for item in items)


def test_reasons_that_alternate_are_shown_once_each() -> None:
    """A missing image: the kubelet reports it, waits, and reports it again, until the user ends the job."""
    statuses = ["Pending: ErrImagePull", "Pending: ImagePullBackOff"] * 3 + ["Running"] + ["Pending: ErrImagePull"] * 2
    job: Any = Job(0)
    job.status = lambda: statuses.pop(0)
    follower = LogFollower(job, cast("Any", None), StopSignal(), follow=True, since_s=None)
    items = [item for _ in range(len(statuses)) for item in follower.notices()]
    notices = [item.text for item in items if isinstance(item, Notice)]
    assert notices == [
        f"job job: {text}" for text in dict.fromkeys(["Pending: ErrImagePull", "Pending: ImagePullBackOff"])
    ] + ["job job: Running", "job job: Pending: ErrImagePull"]


def test_a_follower_is_told_why_a_job_waits_and_again_when_the_cause_is_another() -> None:
    """A question that the cluster does not answer changes nothing."""
    away = UnreachableError("away")
    answers: list[Any] = ["taint", "taint", away, "devices-in-use", None, "quota"]
    statuses = [*["Pending: 0/2 nodes"] * 4, "Running", "Suspended", "Pending"]
    state = JobState(JobRef("batch", "job"), Phase.PENDING)

    def explain() -> Explanation:
        rule = answers.pop(0)
        if rule is away:
            raise away
        return Explanation(state, [] if rule is None else [Cause(rule, "why")])

    job: Any = Job(0)
    job.status = lambda: statuses.pop(0)
    follower = LogFollower(
        job, cast("Any", None), StopSignal(), follow=True, since_s=None, explain=explain, explain_s=0
    )
    items = [item for _ in range(len(statuses)) for item in follower.notices()]
    told = [item.causes[0].rule for item in items if isinstance(item, Explanation)]
    assert told == ["taint", "devices-in-use", "quota"]
    assert answers == []


def test_a_job_that_waits_for_a_short_time_is_not_explained() -> None:
    job: Any = Job(0)
    job.status = lambda: "Pending: 0/2 nodes"
    explain = cast("Any", "must not be called")
    follower = LogFollower(job, cast("Any", None), StopSignal(), follow=True, since_s=None, explain=explain)
    assert [item for _ in range(3) for item in follower.notices()] == [Notice("job job: Pending: 0/2 nodes")]


def test_a_reader_that_does_not_follow_is_told_why_a_job_waits_and_nothing_else() -> None:
    job: Any = Job(0)
    job.status = lambda: "Pending: 0/2 nodes are available"
    with MergedLogs[Instance](stop := StopSignal()) as merged:
        items = list(LogFollower(job, merged, stop, follow=False, since_s=None).items())
    assert items == [Notice("job job: Pending: 0/2 nodes are available"), LogBlock(b"")]
    job.status = lambda: "Running"
    with MergedLogs[Instance](stop := StopSignal()) as merged:
        assert list(LogFollower(job, merged, stop, follow=False, since_s=None).items()) == [LogBlock(b"")]


def test_the_user_learns_that_the_launcher_waits_for_the_rest_of_a_log() -> None:
    noticed = threading.Event()

    def late() -> Iterator[LogPiece]:
        noticed.wait(60)
        yield LINE

    notices = []
    with MergedLogs[Instance](stop := StopSignal()) as merged:
        merged.add(INSTANCE, late())
        follower = LogFollower(cast("Any", Job(0)), merged, stop, follow=True, since_s=None, quiet_s=0.1)
        for item in follower.items():
            if isinstance(item, Notice):
                notices.append(item.text)
                noticed.set()
    assert notices == ["waiting up to 180 s for the rest of the log of pod pod …"]


def test_a_log_that_its_node_no_longer_gives_is_announced_as_lost() -> None:
    stop = StopSignal()

    def never() -> Iterator[LogPiece]:
        yield LINE
        stop.wait(60)

    items = read(never(), stop, lasts_s=0.0)
    assert items[-1] == LogLoss("its node does not give the rest of its log", source="pod pod")


def test_a_pod_whose_node_fails_it_and_forgets_its_container_is_announced_as_lost() -> None:
    """A kubelet that starts before its device plugin refuses the running pods, and reports no containers for them."""
    states = iter([ContainerState("uid", running=True, scheduled=True)])
    failed = ContainerState("uid", scheduled=True, pod_ended=True)
    nowhere = Credentials(f"http://127.0.0.1:{free_port()}", None, None, None, list, None, True, None)
    items = list(ContainerLog(nowhere, INSTANCE, lambda: next(states, failed), StopSignal()))
    assert [item.reason for item in items if isinstance(item, LogLoss)] == [
        "its node has failed the pod, and forgotten its container"
    ]


@pytest.mark.parametrize(
    ("last", "lost"),
    [
        (ContainerState("uid", scheduled=True, gone=True), False),
        (ContainerState("uid", scheduled=True, running=True, gone=True), True),
        (ContainerState("uid", scheduled=True, terminated=ContainerEnd(), pod_ended=True, gone=True), True),
        (ContainerState("uid", scheduled=True, gone=True, unseen=True), True),
        (ContainerState("uid", gone=True, unseen=True), False),
    ],
)
def test_a_pod_that_existed_only_between_two_looks_is_announced_as_lost_if_it_can_have_started(
    last: ContainerState, lost: bool
) -> None:
    states = iter([ContainerState("uid", scheduled=True)])
    nowhere = Credentials(f"http://127.0.0.1:{free_port()}", None, None, None, list, None, True, None)
    items = list(ContainerLog(nowhere, INSTANCE, lambda: next(states, last), StopSignal()))
    reasons = ["the pod was deleted before its log had been read to the end"] if lost else []
    assert [item.reason for item in items if isinstance(item, LogLoss)] == reasons


def test_lines_of_another_container_have_its_name_and_are_not_counted() -> None:
    other = Instance("training", "pod", "uid", "data")
    stop, counts = StopSignal(), Demultiplexer()
    with MergedLogs[Instance](stop) as merged:
        follower = LogFollower(cast("Any", Job(0)), merged, stop, follow=True, since_s=None)
        stamped = b"2026-11-25T00:00:00.000000000Z [rank 0 cpu:0 #7] a\n2026-11-25T00:00:00.000000001Z b\n"
        (block,) = follower.log_items(other, stamped)
        (loss,) = follower.log_items(other, LogLoss("why"))
    assert isinstance(block, LogBlock)
    assert block.data == b"[data] [rank 0 cpu:0 #7] a\n[data] b\n"
    assert block.timestamps is not None
    assert len(block.timestamps()) == 2
    assert counts.feed(block.data) == [LogLine(line, line) for line in block.data.splitlines()]
    assert (counts.lines, counts.missing) == (0, 0)
    assert loss == LogLoss("why", source="pod pod, container data")


def test_a_log_that_cannot_be_read_after_its_last_line_loses_nothing() -> None:
    """A container that has ended can be removed, and its pod be there still: the kubelet has no log then."""
    stop = StopSignal()
    stamp = b"2026-11-25T00:00:00.000000000Z "
    at_end, between = LogLoss("removed", 1, 2, at_end=True), LogLoss("rotated", 1, 2)
    with MergedLogs[Instance](stop) as merged:
        follower = LogFollower(cast("Any", Job(0)), merged, stop, follow=True, since_s=None)
        list(follower.log_items(INSTANCE, stamp + b"[rank 0 cpu:0 #1] a\n"))
        assert list(follower.log_items(INSTANCE, at_end))
        last = b'[node 0 #1] ended lines="0:1" outcome=resumable\n'
        list(follower.log_items(INSTANCE, stamp + last))
        assert not list(follower.log_items(INSTANCE, at_end))
        assert list(follower.log_items(INSTANCE, between))
