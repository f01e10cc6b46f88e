"""How the process that starts the workers ends before or after them: it releases the run's lock, and says why.

While workers run, the supervisor handles the signals.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from trainer.shared.errors import FolderTakenError, StoppedError


class RunTermination:
    """Why this process must end, if it must. Signals reach the main thread; any thread can call `lose_folder`."""

    def __init__(self) -> None:
        self.loss: str | None = None
        """Why the run's folder is lost; None if it is not."""

    def lose_folder(self, reason: str) -> None:
        """End the run without a last checkpoint: another process works in its folder, or the folder is gone."""
        self.loss = reason
        # The second signal makes the supervisor kill its workers; it must come before they save, which can take
        # hundredths of a second. Signals that arrive together count as one, so send more than two.
        for _ in range(20):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.005)

    def raise_if_lost(self) -> None:
        """Raise an error if another process has taken the run's folder.

        Raises:
            FolderTakenError: It has.
        """
        if self.loss is not None:
            raise FolderTakenError(self.loss)

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Turn SIGTERM into an error, so that everything held is released. Ignore SIGUSR1: there is nothing to save.

        Raises:
            StoppedError: SIGTERM came, in this context and outside the supervisor.
            FolderTakenError: Another process has taken the run's folder.
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
        self.raise_if_lost()
        raise StoppedError("stopped by SIGTERM while no worker was running: start the run again to go on")
