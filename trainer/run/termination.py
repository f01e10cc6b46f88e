"""How the process that starts the workers ends before they have: it lets go of the run's lock, and says why.

While workers run, the supervisor has the signals; this covers the time before and after it.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from trainer.shared.errors import FolderTakenError, StoppedError


class Ending:
    """Why this process has to end, if it has to. Signals reach the main thread; `lose` may be called from any."""

    def __init__(self) -> None:
        self._lost: str | None = None

    def lose(self, why: str) -> None:
        """End the run without a last checkpoint: another process works in its folder."""
        self._lost = why
        for _ in range(2):  # the second one makes the supervisor kill its workers
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)

    def check(self) -> None:
        """Do nothing, unless the run was lost.

        Raises:
            FolderTakenError: it was.
        """
        if self._lost is not None:
            raise FolderTakenError(self._lost)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Turn SIGTERM into an error, so that everything held is released. SIGUSR1 finds nothing to save.

        Raises:
            StoppedError: SIGTERM came, in this context and outside the supervisor.
            FolderTakenError: the run was lost.
        """
        stop, save = signal.signal(signal.SIGTERM, self._stop), signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, stop)
            signal.signal(signal.SIGUSR1, save)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        # Once: a second error would cut short what the first one releases.
        signal.signal(number, signal.SIG_IGN)
        self.check()
        raise StoppedError("stopped by SIGTERM while no worker was running: start the run again to go on")
