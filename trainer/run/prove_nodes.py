"""Checks over all devices of several nodes: the first node leads them, and gets the results of all nodes.

Each node first checks itself. Then the first one begins each common check on all nodes at a new address, and waits for
their results a bounded time. A node that does not answer, or leaves, is a result; the others go on without it.
"""

import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Protocol

from trainer.proof.check import CheckOutcome, CheckPlace, ProofCheck, Result
from trainer.proof.process import place_of
from trainer.run.links import Link, Message, link_to, listen
from trainer.run.meeting import LONGEST_WAIT_S
from trainer.supervisor import Supervisor
from trainer.topology import Topology
from trainer.topology.ports import listen_on_free_port, port_of
from trainer.topology.visible import DeviceKind

PRESENT = "nodes"
"""The name of the result about a node that does not come, or has other versions."""
_RETRY_S = 1.0
_LATE_S = 60.0
"""How much longer than a check's own limit another node can take: it may have begun later."""
RunCheck = Callable[[CheckPlace, ProofCheck], tuple[int | None, Sequence[Result]]]
"""Runs a common check by this node's processes; returns the signal that has ended it, and its results."""


@dataclass(frozen=True)
class ProofNodes:
    """This node among the nodes of the job, and what it does with results.

    Attributes:
        run: The name of the job, which its nodes share.
        host: The name of this node's machine.
        versions: Of this node's software.
        report: Called with each result that this node makes.
        run_check: Runs a common check here.
    """

    topology: Topology
    kind: DeviceKind
    run: str
    host: str
    versions: Mapping[str, str]
    supervisor: Supervisor
    report: Callable[[Result], None]
    run_check: RunCheck

    @property
    def name(self) -> Message:
        """What two nodes of one job have in common."""
        return {"run": self.run, "nodes": self.topology.nodes}

    def place(self, place: CheckPlace) -> CheckPlace:
        """Return a common place as this node sees it."""
        is_whole = len(place.devices) == self.topology.world_size
        table = str(self.topology.rank_table) if is_whole and self.topology.rank_table else ""
        return replace(place, node=self.topology.node_rank, rank_table=table)


class ProofSide(Protocol):
    """One node's side."""

    @property
    def results(self) -> Sequence[Result]:
        """The results of other nodes."""

    @property
    def hosts(self) -> Mapping[str, str]:
        """Of each node that is known, such as `node1`, the machine."""

    @property
    def versions_differ(self) -> bool:
        """Whether a node is known to have other versions than this one."""

    def run(self, devices: Mapping[int, int], checks: Sequence[ProofCheck], own: Sequence[Result]) -> int | None:
        """Run the common checks.

        Args:
            devices: Torch's number of each of this node's devices that opens, by its rank in the job.
            checks: The common ones.
            own: The results of this node by itself.

        Returns:
            The signal that has ended them early; None at their end.
        """

    def close(self) -> None:
        """Let the others go."""


class ProofLeader:
    """The first node."""

    def __init__(self, nodes: ProofNodes) -> None:
        """Listen for the others.

        Raises:
            UsageError: the port is taken.
        """
        self._nodes = nodes
        self.results: list[Result] = []
        """Of the other nodes."""
        self.hosts = {"node0": nodes.host}
        """Of each node that has come, the machine."""
        self.versions_differ = False
        """Whether a node has other versions than this one."""
        self._listener = listen(nodes.topology.master_port)
        self._ready = select.epoll()
        self._ready.register(self._listener.fileno(), select.EPOLLIN)
        self._strangers: dict[int, Link] = {}
        """Connections that have not said which node they are, by their descriptors."""
        self._links: dict[int, Link] = {}
        self._devices: dict[int, tuple[int, int]] = {}
        """The node and torch's number of each device, by the rank in the job."""
        self._versions: dict[int, Mapping[str, str]] = {}
        self._ended: dict[int, str] = {}
        """What each node has ended last: its checks of itself, or the name of a common check."""

    def run(self, devices: Mapping[int, int], checks: Sequence[ProofCheck], own: Sequence[Result]) -> int | None:
        """Wait for the others, and lead the common checks."""
        del own
        self._devices |= {rank: (0, device) for rank, device in devices.items()}
        others = list(range(1, self._nodes.topology.nodes))
        if stop := self._wait(PRESENT, others, LONGEST_WAIT_S):
            return stop
        self._compare_versions()
        for check in checks:
            others = list(self._links)
            with listen_on_free_port() as listener:
                place = self._place(port_of(listener))
                if not place.own_ranks or len(place.devices) < 2:
                    reason = "a device of node 0, where all meet, and another one must open"
                    self._nodes.report(Result(check.name, "node0", CheckOutcome("impossible", reason), 0.0))
                    continue
                for link in self._links.values():
                    link.send({"check": check.name, "place": asdict(place)})
                stop, _ = self._nodes.run_check(replace(place, listener=listener.fileno()), check)
            if stop := stop or self._wait(check.name, others, check.limit_s + _LATE_S):
                return stop
        return None

    def close(self) -> None:
        """Let the others go."""
        for link in self._links.values():
            link.send({"bye": True})
        for link in (*self._links.values(), *self._strangers.values()):
            link.close()
        self._listener.close()
        self._ready.close()

    def _compare_versions(self) -> None:
        """Report each node whose software is not this node's: a result counts only for its own versions."""
        expected = "the versions of node 0"
        for node, versions in sorted(self._versions.items()):
            packages = sorted({*versions, *self._nodes.versions})
            pairs = {name: (versions.get(name, "none"), self._nodes.versions.get(name, "none")) for name in packages}
            if unlike := [f"{name} {one}, not {other}" for name, (one, other) in pairs.items() if one != other]:
                self.versions_differ = True
                measured = f"node {node} has {'; '.join(unlike)}"
                outcome = CheckOutcome("failed", measured, expected, "give all nodes the same image and driver")
                self._nodes.report(Result(PRESENT, f"node{node}", outcome, 0.0))

    def _place(self, port: int) -> CheckPlace:
        """Return all devices of the nodes that are here, in the order of their ranks."""
        present = [entry for _, entry in sorted(self._devices.items()) if entry[0] in (0, *self._links)]
        address = next((link.own_address for link in self._links.values()), CheckPlace.master_addr)
        place = CheckPlace(
            kind=self._nodes.kind,
            devices=tuple(device for _, device in present),
            rank=0,
            master_port=port,
            master_addr=address,
            nodes=tuple(node for node, _ in present),
        )
        return self._nodes.place(place)

    def _wait(self, what: str, others: Sequence[int], limit_s: float) -> int | None:
        """Wait until nodes have ended a check; report each that has not, and continue without it."""
        deadline = time.monotonic() + limit_s
        while missing := [node for node in others if self._ended.get(node) != what and node not in self._gone(what)]:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                break
            if not self._nodes.supervisor.wait(self._ready.fileno(), timeout_s=left_s):
                return signal.SIGTERM
            self._read()
        for node in others:
            if self._ended.get(node) != what:
                words = f"has not answered within {limit_s:g} s" if node in missing else "is gone"
                advice = "see its pod's log and events"
                outcome = CheckOutcome("unfinished", f"node {node} {words}", "its results", advice)
                self._nodes.report(Result(what, f"node{node}", outcome, limit_s if node in missing else 0.0))
                if link := self._links.pop(node, None):
                    self._drop(link)
        return None

    def _gone(self, what: str) -> set[int]:
        """Return the nodes that have been here and have left; before the first meeting a node's next pod may come."""
        return set() if what == PRESENT else set(self._ended) - set(self._links)

    def _read(self) -> None:
        for descriptor, _ in self._ready.poll(0):
            if descriptor == self._listener.fileno():
                with suppress(OSError):  # it has gone again
                    link = Link(self._listener.accept()[0])
                    self._strangers[link.fileno()] = link
                    self._ready.register(link.fileno(), select.EPOLLIN)
                continue
            known = {link.fileno(): node for node, link in self._links.items()}
            if descriptor in known:
                self._take(known[descriptor])
            elif descriptor in self._strangers:
                self._greet(self._strangers[descriptor])

    def _greet(self, link: Link) -> None:
        """Take in the first messages of a connection; drop one that is not of this job."""
        messages = link.receive()
        if messages == []:
            return
        del self._strangers[link.fileno()]
        match messages:
            case [{"node": int(node), "host": str(host), "versions": dict(versions), **name}, *rest] if (
                name == self._nodes.name and node not in self._links
            ):
                self._links[node], self._versions[node] = link, versions
                self.hosts[f"node{node}"] = host
                for message in rest:
                    self._understand(node, message)
            case _:
                self._drop(link)

    def _take(self, node: int) -> None:
        messages = self._links[node].receive()
        if messages is None:
            self._drop(self._links.pop(node))
        for message in messages or ():
            self._understand(node, message)

    def _understand(self, node: int, message: Message) -> None:
        match message:
            case {"result": dict(result)}:
                outcome = CheckOutcome(**result.pop("outcome"))
                self.results.append(Result(**result, outcome=outcome))
            case {"devices": list(devices)}:
                self._devices |= {rank: (node, device) for rank, device in devices}
            case {"ended": str(what)}:
                self._ended[node] = what

    def _drop(self, link: Link) -> None:
        self._ready.unregister(link.fileno())
        link.close()


class ProofFollower:
    """Another node: it does what the first one says."""

    results: Sequence[Result] = ()
    hosts: Mapping[str, str] = MappingProxyType({})
    versions_differ = False

    def __init__(self, nodes: ProofNodes) -> None:
        self._nodes = nodes
        self._link: Link | None = None
        self._nothing = select.epoll()
        """To wait for a signal only."""

    def run(self, devices: Mapping[int, int], checks: Sequence[ProofCheck], own: Sequence[Result]) -> int | None:
        """Send the results of this node, and do the common checks until the first node ends them."""
        if stop := self._connect():
            return stop
        self._send(own, {"devices": list(devices.items())}, {"ended": PRESENT})
        known = {check.name: check for check in checks}
        heard_at = time.monotonic()
        while self._link is not None:
            if not self._nodes.supervisor.wait(self._link.fileno(), timeout_s=LONGEST_WAIT_S):
                return signal.SIGTERM
            messages = self._link.receive()
            for message in messages or ():
                match message:
                    case {"check": str(name), "place": dict(place)}:
                        stop, made = self._nodes.run_check(self._nodes.place(place_of(place)), known[name])
                        if stop is not None:
                            return stop
                        self._send(made, {"ended": name})
                    case {"bye": _}:
                        return None
            if messages:
                heard_at = time.monotonic()
            elif messages is None or time.monotonic() - heard_at > LONGEST_WAIT_S:
                self._miss("is gone" if messages is None else f"has said nothing for {LONGEST_WAIT_S:g} s")
        return None

    def close(self) -> None:
        """Leave."""
        self._nothing.close()
        if self._link is not None:
            self._link.close()

    def _connect(self) -> int | None:
        """Connect to the first node, which may start later; return the signal that has ended this, or None."""
        address, port = self._nodes.topology.master_addr, self._nodes.topology.master_port
        deadline = time.monotonic() + LONGEST_WAIT_S
        while (link := link_to(address, port)) is None:
            if time.monotonic() > deadline:
                self._miss(f"at {address}:{port} does not answer")
                return None
            if not self._nodes.supervisor.wait(self._nothing.fileno(), timeout_s=_RETRY_S):
                return signal.SIGTERM
        self._link = link
        node, versions = self._nodes.topology.node_rank, dict(self._nodes.versions)
        link.send({"node": node, "host": self._nodes.host, "versions": versions, **self._nodes.name})
        return None

    def _send(self, results: Sequence[Result], *messages: Message) -> None:
        if self._link is not None:
            for message in (*({"result": asdict(result)} for result in results), *messages):
                self._link.send(message)

    def _miss(self, words: str) -> None:
        """Report that there is no first node, and end."""
        outcome = CheckOutcome("unfinished", f"node 0 {words}", "its answer", "see its pod's log and events")
        self._nodes.report(Result(PRESENT, "node0", outcome, 0.0))
        if self._link is not None:
            self._link.close()
            self._link = None
