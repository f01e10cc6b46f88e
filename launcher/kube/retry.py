"""When the launcher asks again: which failures may pass, how long it waits between two tries, and when it gives up.

The one place for these rules: the API's requests, its watches, the readers of logs and every command that waits share
them, so that an API server that restarts ends no command. Clocks, sleeping and chance are arguments.
"""

import math
import random
import time
from collections.abc import Callable
from typing import TypeVar

from launcher.errors import LauncherError, WaitTimeoutError
from trainer.shared.durations import LONGEST_S

GIVE_UP_S = 180.0
"""How long the cluster may give no answer before the launcher stops asking."""
FIRST_DELAY_S = 0.02
_STEP_S, LONGEST_DELAY_S = 0.5, 15.0
BUSY_TRIES = 4
"""How often a request is repeated that the server was too busy (429) to serve."""
_BUSY_S = 1.0
BUSIEST_S = 10.0
"""How long the launcher leaves a busy server in peace before a try, in silence. One that asks for more gets no try."""
_LONGEST_PAUSE_S = 2.0
AWAY, BACK = "the cluster does not answer; trying again …", "the cluster answers again"

Answer = TypeVar("Answer")


class Backoff:
    """The failures since the last success: how long they have lasted, and how long to wait before the next try."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, chance: Callable[[], float] = random.random
    ) -> None:
        self._clock = clock
        self._chance = chance
        self.since: float | None = None
        """The moment of the first failure by the clock; None after a success."""
        self.failures = 0

    def fail(self) -> float:
        """Count a failure; return for how many seconds nothing has succeeded."""
        now = self._clock()
        self.since = now if self.since is None else self.since
        self.failures += 1
        return now - self.since

    def should_retry(self, error: LauncherError, limit_s: float = GIVE_UP_S) -> bool:
        """Count a failure; return whether another try may help, and `limit_s` is not over."""
        return self.fail() <= limit_s and error.transient

    def reset(self) -> bool:
        """Note a success; return whether it ends a series of failures."""
        ended = self.since is not None
        self.since, self.failures = None, 0
        return ended

    def delay_s(self) -> float:
        """Return the seconds to wait before the next try: hardly any at first, then 0.5 s, doubled up to 15 s.

        Half of the longer delays is chance, so that many launchers do not come back in the same moment.
        """
        if self.failures <= 1:
            return FIRST_DELAY_S
        longest: float = min(_STEP_S * 2.0 ** (self.failures - 2), LONGEST_DELAY_S)
        return longest * (1 + self._chance()) / 2


def retry_after_s(header: str | None) -> float | None:
    """Return the seconds of a `Retry-After` header (RFC 9110 10.2.3); None without it. Kubernetes gives whole ones."""
    return min(float(header), LONGEST_S) if header is not None and header.isdecimal() else None


def busy_delay_s(header: str | None) -> float:
    """Return how long a server that is too busy wants to be left in peace, by its `Retry-After` header."""
    wanted_s = retry_after_s(header)
    return _BUSY_S if wanted_s is None else wanted_s


def poll(
    ask: Callable[[], Answer | None],
    *,
    every_s: float,
    deadline: float = math.inf,
    note: Callable[[str], None] = lambda _: None,
    expired: Callable[[LauncherError | None], str] = lambda _: "the time is over",
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Answer:
    """Return the first answer of `ask` that is not None. It tolerates an outage of the cluster for a while.

    Args:
        deadline: the moment by `clock` after which `ask` is not called again.
        note: tells the user of an outage and of its end.
        expired: returns the error message for the deadline; it is given the last error if the cluster is away.

    Raises:
        WaitTimeoutError: the deadline is over.
        LauncherError: the cluster refuses, or gives no answer for `GIVE_UP_S`.
    """
    backoff = Backoff(clock)
    while True:
        answer, failure = None, None
        was_away = backoff.since is not None
        try:
            answer = ask()
        except LauncherError as error:
            if not backoff.should_retry(error):
                raise
            failure = error
        is_away = failure is not None
        if is_away is not was_away:
            note(BACK if failure is None else f"{AWAY} ({failure})")
        if not is_away:
            backoff.reset()
        if answer is not None:
            return answer
        if clock() >= deadline:
            raise WaitTimeoutError(expired(failure)) from failure
        # A server that is too busy must not be asked five times a second.
        pause_s = max(every_s, min(backoff.delay_s(), _LONGEST_PAUSE_S)) if is_away else every_s
        sleep(max(0.0, min(pause_s, deadline - clock())))
