"""How the process that starts the workers ends before or after them: it releases the run's lock, and says why.

While workers run, the supervisor handles the signals.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from trainer.records.lease import Lease, describe_loss
from trainer.shared.errors import StoppedError, TrainerError
from trainer.supervisor.signals import HAND_OVER


class RunTermination:
    """Why this process must end, if it must. Signals reach the main thread; any thread can call the two methods."""

    def __init__(self) -> None:
        self.loss: TrainerError | None = None
        """Why the run's folder is lost; None if it is not."""

    @staticmethod
    def hand_over() -> None:
        """Save and end the run: a later pod of this job waits for the folder."""
        # No SIGTERM: a second one would have the workers killed before they have saved.
        os.kill(os.getpid(), HAND_OVER)

    def lose_folder(self, loss: TrainerError) -> None:
        """End the run without a last checkpoint: another process works in its folder, or the folder is gone."""
        self.loss = loss
        # The second signal makes the supervisor kill its workers; it must come before they save, which can take
        # hundredths of a second. Signals that arrive together count as one, so send more than two.
        for _ in range(20):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.005)

    def find_loss(self, lease: Lease, run: Path) -> str | None:
        """Return why the run's folder is lost, None if it is not: a worker can find out first."""
        try:
            with suppress(OSError):  # which tells nothing about the lock
                lease.prove()
        except TrainerError as loss:
            self.loss = self.loss or loss
        return describe_loss(run) if self.loss is None else str(self.loss)

    def raise_if_lost(self) -> None:
        """Raise an error if another process has taken the run's folder.

        Raises:
            FolderTakenError: It has.
            StoppedError: A later pod of the same job has.
        """
        if self.loss is not None:
            raise self.loss

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Turn SIGTERM into an error, so that everything held is released. Ignore SIGUSR1: there is nothing to save.

        Raises:
            StoppedError: SIGTERM or a successor's request came, in this context and outside the supervisor.
            FolderTakenError: Another process has taken the run's folder.
        """
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, HAND_OVER)}
        before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        try:
            yield
        finally:
            for number, action in before.items():
                signal.signal(number, action)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        # Once: a second error would cut short what the first one releases.
        for signal_number in (signal.SIGTERM, HAND_OVER):
            signal.signal(signal_number, signal.SIG_IGN)
        self.raise_if_lost()
        reason = "SIGTERM" if number == signal.SIGTERM else "a later pod of this job"
        raise StoppedError(f"stopped by {reason} while no worker was running: start the run again to go on")
