"""Bearing that a cluster gives no answer for a while: an API server that is started anew ends nobody's waiting."""

import math
import time
from collections.abc import Callable
from typing import TypeVar

from launcher.errors import LauncherError, UnreachableError
from launcher.kube.api import ApiError

GIVE_UP_S = 180.0
"""How long the cluster may be away before a person is told that it stays away."""
AWAY, BACK = "the cluster does not answer; trying again …", "the cluster answers again"

Answer = TypeVar("Answer")


class Outage:
    """What is known of a cluster's absence: since when, and whether it has lasted too long."""

    def __init__(self, give_up_s: float = GIVE_UP_S) -> None:
        self._give_up_s = give_up_s
        self.since: float | None = None
        """When the cluster stopped answering (monotonic); None while it answers."""

    def bears(self, error: LauncherError) -> bool:
        """Whether to ask again after `error`, which may pass, and has not lasted too long."""
        now = time.monotonic()
        if self.since is None:
            self.since = now
        return passes(error) and now - self.since <= self._give_up_s

    def end(self) -> bool:
        """The cluster answers; whether that is news."""
        was, self.since = self.since, None
        return was is not None


def passes(error: LauncherError) -> bool:
    """Whether it may be otherwise in a moment: no answer, or one of a server that is not well or too busy."""
    if isinstance(error, ApiError):
        return error.status >= 500 or error.status == 429
    return isinstance(error, UnreachableError)


def patiently(
    ask: Callable[[], Answer], note: Callable[[str], None], *, every_s: float, until: float = math.inf
) -> Answer:
    """What `ask` answers, as soon as the cluster answers at all; a person is told that it does not.

    Args:
        until: when not to ask any more (monotonic).

    Raises:
        LauncherError: it is refused, or the cluster stays away.
    """
    outage = Outage()
    while True:
        answered = outage.since is None
        try:
            answer = ask()
        except LauncherError as error:
            if not outage.bears(error) or time.monotonic() >= until:
                raise
            if answered:
                note(AWAY)
            time.sleep(max(0.0, min(every_s, until - time.monotonic())))
        else:
            if not answered:
                note(BACK)
            return answer
