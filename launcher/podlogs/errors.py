"""Why a log cannot be read: each error says whether the server was reached, and what it answered.

They exist so that a follower can tell a cut connection, which it heals, from a refusal, which it must tell.

PodLogError             3
├── NotReached            no connection: refused, timed out, no such host
├── Broken                the connection was cut
│   └── Silent            nothing came for so long that it may have been cut without a word
├── Untrusted             certificates do not fit together; trying again does not help
├── Refused               the server's answer, with its HTTP status and message
└── Stopped               this side wants no more
"""

from dataclasses import dataclass

from launcher.errors import UnreachableError


class PodLogError(UnreachableError):
    """A container's log cannot be read."""


class NotReached(PodLogError):  # noqa: N818  # named after what happened, like its siblings
    """No connection came about."""


class Broken(PodLogError):  # noqa: N818  # named after what happened, like its siblings
    """The connection was cut in the middle of an answer."""


class Silent(Broken):
    """Nothing came for a while: the container is quiet, or the connection is dead."""


class Untrusted(PodLogError):  # noqa: N818  # named after what happened, like its siblings
    """One side's certificate is not accepted, or its file cannot be used."""


@dataclass
class Refused(PodLogError):  # noqa: N818  # named after what happened, like its siblings
    """The server answered with something else than a log.

    Attributes:
        status: of HTTP.
        message: of the Status object that the API server sends, or the body's beginning.
        retry_after_s: when it wants to be asked again, if it said so.
    """

    status: int
    message: str
    retry_after_s: float | None = None

    def __str__(self) -> str:
        """`403: pods "x" is forbidden: …`."""
        return f"{self.status}: {self.message}"


class Stopped(PodLogError):  # noqa: N818  # named after what happened, like its siblings
    """The stop was set."""
