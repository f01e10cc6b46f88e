"""A TCP proxy to the API server that cuts connections at random: by reset, by close, or by silence and then reset.

It can also be unavailable for a while, like a server that restarts.
"""

import math
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.local.fault_relay import Connection, FaultRelay


class CuttingProxy(FaultRelay):
    """Listen on a free port while the context lasts.

    Args:
        target: the port on 127.0.0.1 to which the proxy connects.
        every_s: about how long a connection lives after it begins to carry data, or three times as long without data.
            On a busy machine, a shorter life before the first data could end a connection before it is used.
        silence_s: how long a silent connection stays silent before its reset.
    """

    def __init__(self, target: int, *, every_s: float, silence_s: float, seed: int) -> None:
        super().__init__(target)
        self._every_s = every_s
        self._silence_s = silence_s
        self._random = random.Random(seed)
        self._drawing = threading.Lock()
        self.cuts = 0
        """Connections that the proxy has cut while they were in use."""

    @contextmanager
    def unavailable(self) -> Iterator[None]:
        """End every connection, and refuse new ones, while the context lasts."""
        self.kill_server()
        yield
        self.restart_server()

    def accepted(self, connection: Connection) -> None:
        """Cut the connection after a while, in a random way."""
        threading.Thread(target=self._cut, args=(connection,), daemon=True).start()

    def _cut(self, connection: Connection) -> None:
        with self._drawing:
            life_s = self._every_s * self._random.uniform(0.5, 1.5)
            ending = self._random.choice(("reset", "close", "silence"))
        connection.is_in_use.wait(3 * life_s)
        time.sleep(life_s)
        if ending == "silence":
            connection.silent_until = math.inf
            time.sleep(self._silence_s)
        self.cuts += 1
        self._connections.discard(connection)
        connection.close() if ending == "close" else connection.reset()
