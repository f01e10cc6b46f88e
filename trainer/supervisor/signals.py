"""The signals to the supervisor, as bytes that its loop can wait for; none gets lost between two groups of workers."""

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

STOPS = frozenset({signal.SIGTERM, signal.SIGINT})
"""The signals that ask the node to stop."""
HAND_OVER = signal.SIGUSR2
"""The signal that asks a node to stop that does not stop yet: a later pod of its job waits for the run's folder."""
_Handler = Callable[[int, FrameType | None], Any] | int | None


class SignalInbox:
    """Every signal arrives on the descriptor `fd` as one byte, its number, from `open` to `close`."""

    def __init__(self) -> None:
        self.fd = -1
        self.stops = 0
        """How many signals of `STOPS` have been read."""
        self.handed_over = False
        """Whether HAND_OVER has been read."""
        self._writer = -1
        self._wakeup_fd = -1
        self._handlers: dict[int, _Handler] = {}

    def open(self) -> None:
        """Take the signals over from their handlers."""
        self.fd, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup_fd = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        # The handler leaves the signal to the loop, which acts on its byte in the wake-up descriptor.
        self._handlers = {
            number: signal.signal(number, lambda _number, _frame: None)
            for number in (signal.SIGCHLD, signal.SIGUSR1, HAND_OVER, *STOPS)
        }

    def close(self) -> None:
        """Give the signals back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_fd)
        os.close(self.fd)
        os.close(self._writer)

    def read(self) -> bytes:
        """Return the numbers of the signals since the last call."""
        try:
            numbers = os.read(self.fd, 1 << 12)
        except BlockingIOError:
            return b""
        self.handed_over = self.handed_over or HAND_OVER in numbers
        self.stops += sum(number in STOPS for number in numbers)
        return numbers
