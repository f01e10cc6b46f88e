"""How long a follower bears what goes wrong, and how long it waits before it asks again.

A connection that is cut is asked for again at once; a server that stays away is asked less and less often, with some
chance in it so that many followers do not all come back in the same moment. Pure: the clock and the chance are given.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from launcher.podlogs.errors import PodLogError, Refused, Silent, Stopped, Untrusted

FIRST_S = 0.02
STEP_S = 0.5
LONGEST_S = 15.0


@dataclass(frozen=True, slots=True)
class Timing:
    """How a follower deals with time, in seconds.

    Attributes:
        poll_s: between two looks at a container that has not started.
        tick_s: between two looks at one that is followed, and quiet.
        idle_s: a silence after which the connection is made anew.
        connect_s: how long a connection may take.
        settle_s: a status may be that much behind the kubelet.
        refused_s: how long an answer that the status contradicts is asked for again.
        unreachable_s: how long a server may be out of reach.
    """

    poll_s: float = 0.05
    tick_s: float = 0.1
    idle_s: float = 60
    connect_s: float = 10
    settle_s: float = 0.3
    refused_s: float = 10
    unreachable_s: float = 180


class Patience:
    """What has gone wrong since something last went right."""

    def __init__(self, timing: Timing, clock: Callable[[], float], chance: Callable[[], float] = random.random) -> None:
        self._timing = timing
        self._clock = clock
        self._chance = chance
        self._since: float | None = None
        self._failures = 0
        self._refused = False

    def restore(self) -> None:
        """Something went right."""
        self._since = None
        self._failures = 0

    def pause_s(self, error: PodLogError) -> float:
        """How long to wait after `error`.

        Raises:
            PodLogError: it is that `error`, and there is no point in waiting, or the time for it is over.
        """
        if isinstance(error, Silent):
            # No failure: a container may be quiet for days.
            return FIRST_S
        if isinstance(error, Refused) is not self._refused:
            # A server that is back, and refuses, has its own time: its pods may not have told yet what they are.
            self._refused = not self._refused
            self.restore()
        now = self._clock()
        self._since = now if self._since is None else self._since
        self._failures += 1
        if self._is_final(error, now - self._since):
            raise error
        if isinstance(error, Refused) and error.retry_after_s is not None:
            return error.retry_after_s
        if self._failures == 1:
            return FIRST_S
        longest: float = min(STEP_S * 2.0 ** (self._failures - 2), LONGEST_S)
        return longest * (1 + self._chance()) / 2

    def _is_final(self, error: PodLogError, lasted_s: float) -> bool:
        if isinstance(error, Untrusted | Stopped):
            return True
        if not isinstance(error, Refused):
            return lasted_s > self._timing.unreachable_s
        if error.status == 401:
            # The token is asked for anew once.
            return self._failures > 1
        if error.status == 429 or error.status >= 500:
            # Who says so is there; whether the log is to be had again, the pod's status will tell.
            return False
        return error.status == 403 or lasted_s > self._timing.refused_s
