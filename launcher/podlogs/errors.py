"""Why a log cannot be read, and for how long a reader asks again after each of these reasons.

The classes say whether the server was reached and what it answered, so that a reader can tell a cut connection, which
it repairs, from a refusal, which the user must learn of. How long the reader waits between two tries is the rule of
`launcher.kube.retry`; only the limits are here, because a log has more kinds of failure than a request.
"""

import math
from dataclasses import dataclass

from launcher.errors import UnreachableError, is_transient_status
from launcher.kube.retry import FIRST_DELAY_S, GIVE_UP_S, LONGEST_DELAY_S, Backoff

# How long to repeat a request for the log of an ended container that the server refuses.
_REFUSED_S = 10.0
# The same for a container that runs: its status may come from a silent watch, which is replaced after 75 s at most.
_CONTRADICTED_S = 90.0


class PodLogError(UnreachableError):
    """A container's log cannot be read."""


class NotConnectedError(PodLogError):
    """No connection came about: it was refused or timed out, or there is no such host."""


class ConnectionCutError(PodLogError):
    """The connection was cut in the middle of an answer."""


class SilentError(ConnectionCutError):
    """Nothing came for a while: the container is quiet, or the connection was cut without notice."""


class UntrustedError(PodLogError):
    """One side does not accept the other's certificate, or cannot use its own. Only other certificates help."""

    transient = False


@dataclass
class LogRefusedError(PodLogError):
    """The server answered with something else than a log.

    Attributes:
        status: of HTTP.
        message: of the Status object that the API server sends, or the body's beginning.
        retry_after_s: how long the server wants to be left in peace, if it said so.
    """

    status: int
    message: str
    retry_after_s: float | None = None

    def __str__(self) -> str:
        """`403: pods "x" is forbidden: …`."""
        return f"{self.status}: {self.message}"


class ReadStoppedError(PodLogError):
    """The reader's own stop signal was set."""

    transient = False


@dataclass(frozen=True, slots=True)
class Timing:
    """How a reader deals with time, in seconds.

    Attributes:
        poll_s: between two looks at a container that has not started.
        tick_s: between two looks at one whose log is followed, and quiet.
        idle_s: a silence after which a follower connects again: balancers drop silent connections without notice.
        reply_s: the same for an answer that is not followed, which has no reason to be silent; doubled after each
            silence up to `idle_s`, for nodes that are slow.
        connect_s: how long a connection may take.
        settle_s: how far a status may be behind the kubelet.
    """

    poll_s: float = 0.05
    tick_s: float = 0.1
    idle_s: float = 60
    reply_s: float = 10
    connect_s: float = 10
    settle_s: float = 0.3


class LogRetry:
    """The failures of one reader since its last success."""

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._was_refused = False

    def reset(self) -> None:
        """Note a success."""
        self._backoff.reset()

    def delay_s(self, error: PodLogError, *, runs: bool = False) -> float:
        """Return how long to wait after `error`.

        Args:
            runs: the container runs, as far as its status says.

        Raises:
            PodLogError: `error` itself, if another try does not help or the time for tries is over.
        """
        if isinstance(error, SilentError):
            # Not a failure: a container may be quiet for days.
            return FIRST_DELAY_S
        refused = isinstance(error, LogRefusedError)
        if refused is not self._was_refused:
            # A server that is back and refuses has its own time limit: its view of the pods may be behind at first.
            self._was_refused = refused
            self.reset()
        if self._backoff.fail() > self._limit_s(error, _CONTRADICTED_S if runs else _REFUSED_S):
            raise error
        if isinstance(error, LogRefusedError) and error.retry_after_s is not None:
            return min(error.retry_after_s, LONGEST_DELAY_S)
        return self._backoff.delay_s()

    def _limit_s(self, error: PodLogError, refused_s: float) -> float:
        """Return for how long a request that fails so is repeated; below zero if it never is."""
        if isinstance(error, UntrustedError) or (isinstance(error, LogRefusedError) and error.status == 401):
            # The reader logs in again once: a certificate may have been renewed on the disk.
            return math.inf if self._backoff.failures == 1 else -1
        if not isinstance(error, LogRefusedError):
            return GIVE_UP_S if error.transient else -1
        if is_transient_status(error.status):
            # The kubelet or the server answered; whether the log can still be read, the pod's status will say.
            return math.inf
        return -1 if error.status == 403 else refused_s
