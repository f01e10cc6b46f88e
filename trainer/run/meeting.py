"""The values and the interface of a rendezvous: what nodes tell each other before an attempt, and how one waits."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from trainer.shared.errors import TrainerError
from trainer.supervisor import Sample, Supervisor

LONGEST_WAIT_S = 1800.0
"""How long a node waits for the others, as torch's rendezvous does: their pods may start later."""
NOTE_EVERY_S = 60.0


@dataclass(frozen=True)
class Report:
    """How one node's workers ended.

    Attributes:
        crashed: Others in their place might not fail.
        cause: In logfmt.
        stopped: They failed after the node had been told to stop.
    """

    crashed: bool
    cause: str
    stopped: bool = False


@dataclass(frozen=True)
class Meeting:
    """An attempt as the first node has begun it.

    Attributes:
        address, port: Where its workers meet.
        checkpoint: The training state that they continue from, relative to the run's folder; None begins at the first
            step. Before the first attempt of its process each node chooses by itself.
        cause: Why the attempt before it ended, in logfmt.
        lock_token: The token in the run's lock, which the first node holds: by it the others find out that it is lost.
    """

    attempt: int
    address: str
    port: int
    checkpoint: str | None = None
    cause: str = ""
    lock_token: str = ""


Begin = Callable[[str], Meeting | None]
"""Begins the next attempt, on the first node; the argument is the cause, and None means that this process must end."""


class Rendezvous(Protocol):
    """One node's side. The supervisor's loop listens to `fd` while workers run."""

    @property
    def fd(self) -> int | None:
        """A descriptor that can be read when another node has said something; None on a single node."""

    @property
    def peers_end(self) -> Literal["", "stopped", "lost"]:
        """How another node left first, if none of its workers had failed: by a stop, or without a word."""

    def poll(self) -> str | None:
        """Take in what other nodes have said; return why this node's workers must stop, if they must."""

    def tell_failure(self, cause: str) -> None:
        """Have the others stop their workers, because this node's are failing."""

    def share(self, samples: Sequence[Sample]) -> None:
        """Send samples to the first node, if it reads."""

    def take_samples(self) -> Sequence[Sample]:
        """Return the samples of other nodes since the last call, on the first node."""

    def meet(self, report: Report | None, begin: Begin) -> Meeting | None:
        """Wait for the other nodes; return the next attempt, or None if this process must end.

        Args:
            report: How this node's workers have ended; None before the first attempt.

        Raises:
            TrainerError: A node did not come in time.
        """

    def close(self, *, stopped: bool = False) -> None:
        """Tell the others that this node leaves in order; `stopped` if it was told to stop."""


class SingleNode:
    """A job on one node agrees with itself."""

    fd: int | None = None
    peers_end: Literal["", "stopped", "lost"] = ""

    def poll(self) -> str | None:
        """Return None: there is no other node."""

    def tell_failure(self, cause: str) -> None:
        """Do nothing: there is no other node."""

    def share(self, samples: Sequence[Sample]) -> None:
        """Do nothing: there is no other node."""

    def take_samples(self) -> Sequence[Sample]:
        """Return nothing: there is no other node."""
        return ()

    def meet(self, report: Report | None, begin: Begin) -> Meeting | None:
        """Return the next attempt, if the workers have crashed."""
        return begin("" if report is None else report.cause) if report is None or report.crashed else None

    def close(self, *, stopped: bool = False) -> None:
        """Do nothing: there is no other node."""


class PeerWait:
    """A wait for other nodes: with lines for the user, with an end, and not in the way of a signal."""

    def __init__(self, supervisor: Supervisor, fd: int) -> None:
        self._supervisor, self._fd = supervisor, fd
        self._began = self._said = time.monotonic()

    def turn(self, text: str, *, at_most_s: float = NOTE_EVERY_S) -> bool:
        """Wait until a node has said something; return False if a signal asks this node to stop.

        Args:
            text: What is waited for.

        Raises:
            TrainerError: The wait has been too long.
        """
        now = time.monotonic()
        if now - self._began > LONGEST_WAIT_S:
            raise TrainerError(f"waited {LONGEST_WAIT_S:g} s for {text}: see its pod's log and events")
        if now - self._said >= NOTE_EVERY_S:
            self._said = now
            self._supervisor.say(f"waiting for {text}, since {now - self._began:.0f} s")
        return self._supervisor.wait(self._fd, timeout_s=at_most_s)
