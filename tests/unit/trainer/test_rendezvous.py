"""All supervisors of a job begin the same next attempt, when no worker runs any more, or none of them does."""

import io
import json
import select
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from trainer.run.meeting import Meeting, Report, SingleNode
from trainer.run.rendezvous import FirstNode, OtherNode
from trainer.shared.errors import TrainerError, UsageError
from trainer.supervisor import Supervisor
from trainer.topology.ports import free_port

KILLED = 'rank=1 device=cpu:0 cause="killed by SIGKILL (out of memory?)"'
LOST_PEER = 'rank=0 device=cpu:0 cause="RuntimeError: Connection closed by peer [127.0.0.1]:4000"'
CRASH, CONSEQUENCE = Report(crashed=True, cause=KILLED), Report(crashed=True, cause=LOST_PEER)
REFUSAL = Report(crashed=False, cause='rank=1 device=npu:0 cause="the device failed (hbm Multi-bit ECC error)"')


class _Supervisor(Supervisor):
    """The part of a supervisor that waits and prints."""

    def __init__(self, stdout: io.BufferedWriter) -> None:
        super().__init__(stdout, node_rank=0)
        self.told_to_stop = False
        self.lines: list[str] = []

    def wait(self, fd: int, *, timeout_s: float) -> bool:
        select.select([fd], [], [], min(timeout_s, 0.05))
        return not self.told_to_stop

    def say(self, text: str) -> None:
        self.lines.append(text)


class _Nodes:
    """The sides of all nodes of one run, in this process."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack = stack
        self._stdout = stack.enter_context((folder / "stdout").open("wb"))
        self._pool = stack.enter_context(ThreadPoolExecutor())
        self.port = free_port()
        self.begun: list[str] = []

    def first(self, *, nodes: int) -> FirstNode:
        return self._stack.enter_context(closing(FirstNode(self.supervisor(), self.port, nodes=nodes, run="r")))

    def other(self, node: int, *, nodes: int, run: str = "r") -> OtherNode:
        side = OtherNode(self.supervisor(), "127.0.0.1", self.port, node=node, nodes=nodes, run=run)
        return self._stack.enter_context(closing(side))

    def sides(self, nodes: int) -> list[FirstNode | OtherNode]:
        return [self.first(nodes=nodes), *(self.other(node, nodes=nodes) for node in range(1, nodes))]

    def supervisor(self) -> _Supervisor:
        return _Supervisor(self._stdout)

    def begin(self, cause: str) -> Meeting:
        self.begun.append(cause)
        return Meeting(len(self.begun), "name", 1000 + len(self.begun), "checkpoints/step-000000003", cause)

    def meet(self, side: FirstNode | OtherNode, report: Report | None = None) -> "Future[Meeting | None]":
        return self._pool.submit(side.meet, report, self.begin)

    def all_meet(self, *sides: FirstNode | OtherNode, reports: list[Report] | None = None) -> list[Meeting | None]:
        own: Sequence[Report | None] = reports or [None for _ in sides]
        meetings = [self.meet(side, report) for side, report in zip(sides, own, strict=True)]
        return [meeting.result(timeout=60) for meeting in meetings]


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[_Nodes]:
    with ExitStack() as stack:
        yield _Nodes(stack, tmp_path)


def _until(poll: Callable[[], str | None]) -> str:
    """Return the first reason to stop."""
    while (reason := poll()) is None:
        pass
    return reason


def test_all_nodes_begin_the_same_attempt_and_know_its_cause(nodes: _Nodes) -> None:
    sides = nodes.sides(3)[::-1]
    first = nodes.all_meet(*sides)
    assert [meeting and meeting.attempt for meeting in first] == [1, 1, 1]
    second = nodes.all_meet(*sides, reports=[CONSEQUENCE, CRASH, CONSEQUENCE])
    assert second[0] == Meeting(2, "127.0.0.1", 1002, "checkpoints/step-000000003", KILLED)
    assert second == [second[0]] * 3
    assert nodes.begun == ["", KILLED]


def test_no_attempt_begins_before_the_last_workers_have_ended(nodes: _Nodes) -> None:
    other, first = nodes.other(1, nodes=2), nodes.first(nodes=2)
    nodes.all_meet(other, first)
    other.tell_failure("rank=1 device=cpu:0 has ended")
    assert _until(first.poll) == "node 1: rank=1 device=cpu:0 has ended"
    waiting = nodes.meet(first, CONSEQUENCE)
    assert not waiting.done()
    assert nodes.begun == [""]
    meeting = nodes.meet(other, CRASH)
    assert waiting.result(timeout=60) == meeting.result(timeout=60)


def test_a_failure_on_one_node_stops_the_workers_of_all_others(nodes: _Nodes) -> None:
    sides = nodes.sides(3)
    nodes.all_meet(*sides)
    sides[1].tell_failure("rank=1 has ended")
    assert [_until(side.poll) for side in (sides[0], sides[2])] == ["node 1: rank=1 has ended"] * 2
    sides[0].tell_failure("rank=0 has ended")
    assert [_until(side.poll) for side in sides[1:]] == ["node 0: rank=0 has ended"] * 2


@pytest.mark.parametrize("refusing", [0, 1])
def test_a_failure_that_would_come_again_ends_all_nodes(nodes: _Nodes, refusing: int) -> None:
    sides = nodes.sides(2)
    nodes.all_meet(*sides)
    reports = [CONSEQUENCE, CONSEQUENCE]
    reports[refusing] = REFUSAL
    assert nodes.all_meet(*sides, reports=reports) == [None, None]
    assert nodes.begun == [""]


def test_a_supervisor_that_is_gone_ends_all_nodes(nodes: _Nodes) -> None:
    sides = nodes.sides(3)
    nodes.all_meet(*sides)
    assert isinstance(sides[1], OtherNode)
    sides[1]._disconnect()  # as a killed process does, without a word
    assert _until(sides[0].poll) == "node 1 is gone"
    assert nodes.all_meet(sides[0], sides[2], reports=[CONSEQUENCE, CONSEQUENCE]) == [None, None]
    assert nodes.begun == [""]


def test_a_node_that_is_done_stops_no_other(nodes: _Nodes) -> None:
    first, other = nodes.first(nodes=2), nodes.other(1, nodes=2)
    nodes.all_meet(first, other)
    other.close()
    while first._over is None:
        assert first.poll() is None
    assert nodes.meet(first, CONSEQUENCE).result(timeout=60) is None


@pytest.mark.parametrize(
    ("leave", "end"),
    [
        (lambda _nodes, other: other.close(stopped=True), "stopped"),
        (lambda _nodes, other: other.close(), ""),
        (lambda _nodes, other: other._disconnect(), "lost"),
        (lambda nodes, other: nodes.meet(other, Report(crashed=False, cause=KILLED, stopped=True)), "stopped"),
        (lambda nodes, other: nodes.meet(other, REFUSAL), ""),
    ],
    ids=["told to stop", "in order", "without a word", "stopped without a checkpoint", "failed"],
)
def test_the_first_node_knows_whether_another_was_stopped_or_lost(
    nodes: _Nodes, leave: Callable[[_Nodes, OtherNode], object], end: str
) -> None:
    """Neither is a failure of the job, which would use up one of its retries."""
    first, other = nodes.first(nodes=2), nodes.other(1, nodes=2)
    nodes.all_meet(first, other)
    leave(nodes, other)
    assert nodes.meet(first, CONSEQUENCE).result(timeout=60) is None
    assert first.peers_end == end


def test_nodes_that_come_first_wait_for_the_first_node_and_for_its_next_pod(nodes: _Nodes) -> None:
    other = nodes.other(1, nodes=3)
    meeting = nodes.meet(other)
    stopped = nodes.supervisor()
    earlier = FirstNode(stopped, nodes.port, nodes=3, run="r")
    ending = nodes.meet(earlier)
    while 1 not in earlier._links:
        pass
    stopped.told_to_stop = True
    assert ending.result(timeout=60) is None
    earlier.close()
    first, last = nodes.first(nodes=3), nodes.other(2, nodes=3)
    assert nodes.all_meet(first, last)[1] == meeting.result(timeout=60)
    assert nodes.begun == [""]


@pytest.mark.parametrize(
    "words",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\n",
        b"[]\n",
        b'{"stop": "x"}\n',
        json.dumps({"node": 1, "run": "another", "nodes": 2, "report": None}).encode() + b"\n",
        json.dumps({"node": 7, "run": "r", "nodes": 2, "report": None}).encode() + b"\n",
        json.dumps({"node": [], "run": "r", "nodes": 2, "report": None}).encode() + b"\n",
        json.dumps({"node": True, "run": "r", "nodes": 2, "report": None}).encode() + b"\n",
        b"[" * 60_000 + b"\n",
        b"x" * (1 << 17),
        b"",
    ],
)
def test_another_program_at_the_port_is_sent_away(nodes: _Nodes, words: bytes) -> None:
    first = nodes.first(nodes=2)
    meeting = nodes.meet(first)
    with socket.create_connection(("127.0.0.1", nodes.port)) as stranger:
        stranger.sendall(words)
        stranger.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):
            assert stranger.recv(1) == b""
    assert not meeting.done()
    assert nodes.meet(nodes.other(1, nodes=2)).result(timeout=60) == meeting.result(timeout=60)


def test_a_wait_that_is_too_long_and_a_port_that_is_taken_are_one_line(
    nodes: _Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = nodes.first(nodes=4)
    with pytest.raises(UsageError, match=rf"^port {nodes.port} is taken: choose another with --master-port$"):
        nodes.first(nodes=2)
    monkeypatch.setattr("trainer.run.meeting.LONGEST_WAIT_S", -1.0)
    with pytest.raises(TrainerError, match=r"^waited -1 s for node 1, 2, 3: see its pod's log and events$"):
        first.meet(None, nodes.begin)


def test_a_single_node_agrees_with_itself(nodes: _Nodes) -> None:
    side = SingleNode()
    assert side.meet(CRASH, nodes.begin) == Meeting(1, "name", 1001, "checkpoints/step-000000003", KILLED)
    assert side.meet(REFUSAL, nodes.begin) is None
