"""A relay to the API server that cuts connections at random: reset, closed in good order, or silent and then reset."""

import random
import socket
import struct
import threading
import time
from contextlib import suppress

CHUNK = 1 << 16
# SO_LINGER on, for no time at all: close() sends a reset.
_RESET = struct.pack("ii", 1, 0)


class Cutter:
    """Listens on a port of its own, for as long as the context lasts.

    Args:
        target: the port on 127.0.0.1 that it relays to.
        every_s: about how long a connection lives.
        silence_s: how long one that falls silent stays so.
    """

    def __init__(self, target: int, *, every_s: float, silence_s: float, seed: int) -> None:
        self._target = target
        self._every_s = every_s
        self._silence_s = silence_s
        self._random = random.Random(seed)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.cuts = 0
        """Connections that it has cut while they were in use."""

    def __enter__(self) -> "Cutter":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._relay, args=(self._listening.accept()[0],), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", self._target))
        silent = threading.Event()
        for one, other in ((client, server), (server, client)):
            threading.Thread(target=_pump, args=(one, other, silent), daemon=True).start()
        time.sleep(self._every_s * self._random.uniform(0.5, 1.5))
        how = self._random.choice(("reset", "close", "silence"))
        if how == "silence":
            silent.set()
            time.sleep(self._silence_s)
        if how != "close":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.cuts += 1
        for one in (client, server):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def _pump(one: socket.socket, other: socket.socket, silent: threading.Event) -> None:
    with suppress(OSError):
        while data := one.recv(CHUNK):
            if not silent.is_set():
                other.sendall(data)
    with suppress(OSError):
        other.shutdown(socket.SHUT_WR)
