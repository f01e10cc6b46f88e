"""A line now and then from a run whose steps are slow, so that nobody takes it for a stuck one."""

import time
from collections.abc import Callable
from typing import Any

from trainer.records.run_records import say

QUIET_S = 30.0
"""How long a rank may print nothing; `kubectl logs -f` is to show progress at least once a minute."""


class Pulse:
    """Counts the seconds since a rank last said where it is."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()

    def reset(self) -> None:
        """A line has just told where the run is."""
        self._last = self._clock()

    def beat(self, **where: Any) -> None:
        """The run has got on a little: say so if nothing has been said for a while. Waits for no device."""
        if self._clock() - self._last >= QUIET_S:
            say("alive", **where)
            self.reset()
