"""The first node waits for the others a bounded time, names the ones that do not answer, and goes on without them."""

import select
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from trainer.proof.check import CheckOutcome, CheckPlace, ProofCheck, Result
from trainer.run import prove_nodes
from trainer.run.links import Link, link_to
from trainer.run.prove_nodes import ProofFollower, ProofLeader, ProofNodes
from trainer.topology import Topology, Worker
from trainer.topology.ports import free_port

ALL = ProofCheck("all-reduce", "sums", "all", "m:f", limit_s=0.5)
GOOD = CheckOutcome("passed", "right")


class FakeSupervisor:
    """Waits as the supervisor does, or says that a signal has come."""

    stop_requested = False

    def wait(self, fd: int, *, timeout_s: float) -> bool:
        ready = select.poll()
        ready.register(fd, select.POLLIN)
        ready.poll(timeout_s * 1000)
        return not self.stop_requested


class Nodes:
    """The nodes of a job on this machine, of which this test runs one or two."""

    def __init__(self, count: int = 2) -> None:
        self.count, self.port = count, free_port()
        self.supervisor = FakeSupervisor()
        self.results: list[Result] = []
        self.places: list[CheckPlace] = []

    def node(self, number: int, **versions: str) -> ProofNodes:
        workers = (Worker(number, 0, 0),)
        topology = Topology(self.count, self.count, number, workers, "127.0.0.1", self.port, Path("/t"), "options")
        supervisor: Any = self.supervisor
        known = {"torch": "2.9.0", "cann": "8.5.0", **versions}
        return ProofNodes(
            topology, "npu", "proof", f"machine-{number}", known, supervisor, self.results.append, self._run
        )

    def _run(self, place: CheckPlace, check: ProofCheck) -> tuple[int | None, Sequence[Result]]:
        self.places.append(place)
        made = Result(check.name, place.name, GOOD, 0.25)
        self.results.append(made)
        return None, [made]

    def connect(self, number: int, **name: object) -> Link:
        link = link_to("127.0.0.1", self.port)
        assert link is not None
        link.send(
            {"node": number, "host": f"machine-{number}", "versions": {}, "run": "proof", "nodes": self.count, **name}
        )
        return link


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prove_nodes, "LONGEST_WAIT_S", 5.0)
    monkeypatch.setattr(prove_nodes, "_LATE_S", 0.5)


def lead(nodes: Nodes, other: Callable[[], None] = lambda: None) -> ProofLeader:
    """Run the first node to its end, and `other` at the same time."""
    leader = ProofLeader(nodes.node(0))
    thread = threading.Thread(target=other)
    thread.start()
    try:
        assert leader.run({0: 0}, [ALL], []) is None
    finally:
        leader.close()
        thread.join()
    return leader


def test_two_nodes_do_a_common_check_and_the_first_gets_all_results() -> None:
    nodes = Nodes()
    follower = ProofFollower(nodes.node(1))
    own = Result("open", "node1/npu:0", CheckOutcome("passed", "Ascend910B3", figures={"s": 1.5}), 2.0)
    leader = lead(nodes, lambda: follower.close() if follower.run({1: 0}, [ALL], [own]) is None else None)
    assert sorted(place.name for place in nodes.places) == ["node0/npu:0", "node1/npu:0"]
    first, second = nodes.places
    assert (first.devices, first.nodes, first.master_port) == (second.devices, second.nodes, second.master_port)
    assert (first.devices, first.nodes, first.rank_table) == ((0, 0), (0, 1), "/t")
    assert leader.results == [own, Result("all-reduce", "node1/npu:0", GOOD, 0.25)]
    assert leader.hosts == {"node0": "machine-0", "node1": "machine-1"}


def test_a_node_that_never_comes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prove_nodes, "LONGEST_WAIT_S", 0.2)
    nodes = Nodes(3)
    lead(nodes)
    named = [(result.check, result.place, result.outcome.measured) for result in nodes.results]
    assert named == [
        ("nodes", "node1", "node 1 has not answered within 0.2 s"),
        ("nodes", "node2", "node 2 has not answered within 0.2 s"),
        ("all-reduce", "node0", "a device of node 0, where all meet, and another one must open"),
    ]


def test_a_node_that_leaves_or_hangs_in_a_common_check_is_named() -> None:
    for hangs, words in ((False, "node 1 is gone"), (True, "node 1 has not answered within 1 s")):
        nodes = Nodes()

        def other(nodes: Nodes = nodes, hangs: bool = hangs) -> None:
            link = nodes.connect(1, versions={"torch": "2.9.0", "cann": "8.5.0"})
            link.send({"devices": [[1, 0]]})
            link.send({"ended": "nodes"})
            while not (messages := link.receive()):
                select.select([link], [], [])
            assert messages[0]["check"] == "all-reduce"
            if hangs:
                while link.receive() is not None:
                    select.select([link], [], [])
            link.close()

        lead(nodes, other)
        assert nodes.results[0] == Result("all-reduce", "node0/npu:0", GOOD, 0.25)
        assert [result.outcome.measured for result in nodes.results[1:]] == [words]


def test_a_node_with_other_versions_is_named() -> None:
    nodes = Nodes()
    follower = ProofFollower(nodes.node(1, cann="9.0.0"))
    leader = lead(nodes, lambda: follower.close() if follower.run({1: 0}, [ALL], []) is None else None)
    assert leader.versions_differ
    assert [result.outcome.measured for result in nodes.results if result.check == "nodes"] == [
        "node 1 has cann 9.0.0, not 8.5.0"
    ]


def test_another_program_and_another_job_are_no_nodes() -> None:
    nodes = Nodes()

    def others() -> None:
        nodes.connect(1, run="other").close()
        with socket.create_connection(("127.0.0.1", nodes.port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
        follower = ProofFollower(nodes.node(1))
        follower.run({1: 0}, [ALL], [])
        follower.close()

    lead(nodes, others)
    assert [result.outcome for result in nodes.results] == [GOOD, GOOD]


def test_a_node_without_the_first_one_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prove_nodes, "LONGEST_WAIT_S", 0.0)
    nodes = Nodes()
    follower = ProofFollower(nodes.node(1))
    assert follower.run({1: 0}, [ALL], []) is None
    follower.close()
    (result,) = nodes.results
    assert result.outcome.measured == f"node 0 at 127.0.0.1:{nodes.port} does not answer"


def test_a_signal_ends_each_side() -> None:
    nodes = Nodes()
    nodes.supervisor.stop_requested = True
    leader, follower = ProofLeader(nodes.node(0)), ProofFollower(nodes.node(1))
    with mock.patch.object(prove_nodes, "link_to", return_value=None):
        assert follower.run({1: 0}, [ALL], []) is not None
    assert leader.run({0: 0}, [ALL], []) is not None
    leader.close()
    follower.close()
    assert nodes.results == []
