"""The supervisors of a job meet before each attempt, so that never two attempts run at once.

The first node's supervisor listens at MASTER_ADDR:MASTER_PORT as long as it lives, and the others connect to it. Each
says how its workers have ended, when all of them have. The first node then decides: another attempt, or the end. The
workers meet at a new port in each attempt, so that no process of an earlier one can join.
"""

import selectors
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Literal

from trainer.run.links import Link, Message, link_to, listen
from trainer.run.meeting import NOTE_EVERY_S, Begin, Meeting, PeerWait, Report
from trainer.supervisor import Sample, Supervisor, blames_a_peer

_RETRY_S = 1.0
_MOST_SAMPLES = 1 << 14
"""Samples of the hardware that wait for rank 0: an hour of 128 devices."""


class FirstNode:
    """The node of rank 0 decides, when it knows how the workers of every node have ended."""

    def __init__(self, supervisor: Supervisor, port: int, *, nodes: int, run: str) -> None:
        """Listen for the other nodes of `run`.

        Raises:
            UsageError: The port is taken.
        """
        self._supervisor = supervisor
        self._others = range(1, nodes)
        self._name = {"run": run, "nodes": nodes}
        self._listener = listen(port)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self.fd = _descriptor(self._selector)
        self._links: dict[int, Link] = {}
        self._reports: dict[int, Report | None] = {}
        self._over: str | None = None
        """Why there is no further attempt, once another node has left."""
        self.peers_end: Literal["", "stopped", "lost"] = ""
        self._begun = False
        self._samples: deque[Sample] = deque(maxlen=_MOST_SAMPLES)

    def poll(self) -> str | None:
        """Take in what the other nodes have said."""
        reason = None
        for key, _ in self._selector.select(0):
            if key.fileobj is self._listener:
                with suppress(OSError):  # it has gone again, or no file is free: it will come again
                    connection, _ = self._listener.accept()
                    self._selector.register(link := Link(connection), selectors.EVENT_READ, link)
            else:
                reason = self._read(key.data) or reason
        return reason

    def tell_failure(self, cause: str) -> None:
        """Have the others stop their workers."""
        self._tell({"stop": f"node 0: {cause}"})

    def share(self, samples: Sequence[Sample]) -> None:
        """Do nothing: rank 0 is here."""

    def take_samples(self) -> Sequence[Sample]:
        """Return the other nodes' samples since the last call."""
        samples = tuple(self._samples)
        self._samples.clear()
        return samples

    def meet(self, report: Report | None, begin: Begin) -> Meeting | None:
        """Wait until every node's workers have ended, and decide."""
        meeting = None
        if report is None or report.crashed:
            waiting = PeerWait(self._supervisor, self.fd)
            while self._missing and self._over is None:
                if not waiting.turn(f"node {self._missing}"):
                    self._over = "node 0 was told to stop"
                self.poll()
            if self._over is None:
                meeting = begin(self._cause(report))
        if meeting is None:
            if report is not None and report.crashed and self._over is not None:
                self._supervisor.say(f"no restart: {self._over}")
            self._tell({"leave": self._over or f"node 0: {report.cause if report else 'it cannot begin'}"})
            return None
        self._begun = True
        self._reports.clear()
        for link in self._links.values():
            link.send({"begin": {**asdict(meeting), "address": link.own_address}})
        return replace(meeting, address=self._links[1].own_address)

    def close(self, *, stopped: bool = False) -> None:
        """Tell the others that this node leaves in order."""
        self._tell({"bye": stopped})
        for key in list(self._selector.get_map().values()):
            if isinstance(key.data, Link):
                key.data.close()
        self._listener.close()
        self._selector.close()

    @property
    def _missing(self) -> str:
        return ", ".join(str(node) for node in self._others if node not in self._reports)

    def _cause(self, own: Report | None) -> str:
        """Return the cause of the whole crash: of a rank, and not that a peer is gone, if there is such a cause."""
        causes = [report.cause for report in (own, *self._reports.values()) if report is not None]
        return min(causes, key=lambda cause: (not cause.startswith("rank="), blames_a_peer(cause.encode())), default="")

    def _tell(self, message: Message, *, but: int = 0) -> None:
        for node, link in self._links.items():
            if node != but:
                link.send(message)

    def _read(self, link: Link) -> str | None:
        messages = link.receive()
        node = next((node for node, known in self._links.items() if known is link), None)
        reason = None
        for message in messages or ():
            if "report" in message:
                node = self._greet(link, message)
            if node is None:
                messages = None  # another program's, or another run's
                break
            reason = self._understand(node, message) or reason
        if messages is None:
            self._selector.unregister(link)
            link.close()
            if node is not None and self._links.get(node) is link:
                del self._links[node]
                self._reports.pop(node, None)
                if self._begun and self._over is None:
                    self._over = reason = f"node {node} is gone"
                    self.peers_end = "lost"
        return reason

    def _greet(self, link: Link, message: Message) -> int | None:
        """Return the node that speaks, and remember its connection; None if it is not one of this run."""
        node = message.get("node")
        if (
            type(node) is not int  # `true` is an int too
            or node not in self._others
            or {name: message.get(name) for name in self._name} != self._name
        ):
            return None
        if self._begun and self._links.get(node) is not link:
            return None  # a node's next pod: it comes again after this process has ended
        self._links[node] = link
        return node

    def _understand(self, node: int, message: Message) -> str | None:
        match message:
            case {"stop": str(cause)}:
                reason = f"node {node}: {cause}"
                self._tell({"stop": reason}, but=node)
                return reason
            case {"bye": stopped}:
                if self._over is None:
                    self._over = f"node {node} {'was told to stop' if stopped else 'has ended'}"
                    self.peers_end = "stopped" if stopped else ""
            case {"report": dict(values)}:
                report = Report(bool(values.get("crashed")), str(values.get("cause")), bool(values.get("stopped")))
                self._reports[node] = report
                reason = f"node {node}: {report.cause}"
                if not report.crashed and self._over is None:
                    self._over = reason
                    self.peers_end = "stopped" if report.stopped else ""
                return reason
            case {"report": None}:
                self._reports[node] = None
            case {"samples": list(samples)}:
                self._samples.extend(sample for sample in samples if isinstance(sample, dict))
        return None


class OtherNode:
    """A node that does what the first one decides."""

    def __init__(self, supervisor: Supervisor, address: str, port: int, *, node: int, nodes: int, run: str) -> None:
        self._supervisor = supervisor
        self._place = address, port
        self._name = {"node": node, "run": run, "nodes": nodes}
        self._selector = selectors.DefaultSelector()
        self.fd = _descriptor(self._selector)
        self._link: Link | None = None
        self._meeting: Meeting | None = None
        self._over: str | None = None
        """Why there is no further attempt."""
        # The first node keeps the job's records, so only it needs to know.
        self.peers_end: Literal["", "stopped", "lost"] = ""

    def poll(self) -> str | None:
        """Take in what the first node has said."""
        if self._link is None:
            return None
        messages = self._link.receive()
        reason: str | None = None
        for message in messages or ():
            match message:
                case {"begin": dict(values)}:
                    self._meeting = Meeting(**values)
                case {"stop": str(text)}:
                    reason = text
                case {"leave": str(text)}:
                    self._over = reason = text
                case {"bye": _}:
                    self._over = self._over or "node 0 has ended"
        if messages is None:
            if self._over is None:
                self._over = reason = "node 0 is gone"
            self._disconnect()
        return reason

    def tell_failure(self, cause: str) -> None:
        """Have the other nodes stop their workers."""
        if self._link is not None:
            self._link.send({"stop": cause})

    def share(self, samples: Sequence[Sample]) -> None:
        """Send samples to the first node, if it reads."""
        if self._link is not None:
            for sample in samples:
                self._link.offer({"samples": [sample]})

    def take_samples(self) -> Sequence[Sample]:
        """Return nothing: the first node has rank 0."""
        return ()

    def meet(self, report: Report | None, begin: Begin) -> Meeting | None:
        """Report, and wait for the first node's decision."""
        del begin
        message = {**self._name, "report": None if report is None else asdict(report)}
        if self._link is not None:
            self._link.send(message)
        if report is not None and not report.crashed:
            return None
        waiting = PeerWait(self._supervisor, self.fd)
        while (meeting := self._take_meeting()) is None:
            if self._over is not None and report is not None:
                self._supervisor.say(f"no restart: {self._over}")
                return None
            if self._over is not None:  # an earlier pod of the first node: its next one will come
                self._disconnect()
            elif self._link is None:
                self._connect(message)
            pause_s = _RETRY_S if self._link is None else NOTE_EVERY_S
            self._over = None
            if not waiting.turn(f"node 0 at {self._place[0]}:{self._place[1]}", at_most_s=pause_s):
                return None
            self.poll()
        return meeting

    def close(self, *, stopped: bool = False) -> None:
        """Tell the first node that this one leaves in order."""
        if self._link is not None:
            self._link.send({"bye": stopped})
            self._disconnect()
        self._selector.close()

    def _take_meeting(self) -> Meeting | None:
        meeting, self._meeting = self._meeting, None
        return meeting

    def _connect(self, message: Message) -> None:
        self._link = link_to(*self._place)
        if self._link is not None:
            self._selector.register(self._link, selectors.EVENT_READ)
            self._link.send(message)

    def _disconnect(self) -> None:
        if self._link is not None:
            self._selector.unregister(self._link)
            self._link.close()
            self._link = None


def _descriptor(selector: selectors.BaseSelector) -> int:
    """Return the descriptor of a selector: another selector can wait for it (epoll(7))."""
    return int(selector.fileno())  # type: ignore[attr-defined]  # of epoll and of kqueue
