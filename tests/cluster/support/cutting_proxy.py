"""A relay to the API server that cuts connections at random: reset, closed in good order, or silent and then reset.

It can also be away for a while, as a server is that is started anew.
"""

import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

CHUNK = 1 << 16
CARRIED = 8 << 10
"""More than it takes to get to know each other: a connection has begun to say something."""
# SO_LINGER on, for no time at all: close() sends a reset.
_RESET = struct.pack("ii", 1, 0)


class Cutter:
    """Listens on a port of its own, for as long as the context lasts.

    Args:
        target: the port on 127.0.0.1 that it relays to.
        every_s: about how long a connection lives from when it carries something, or some times that where it does
            not. On a busy machine, one whose life began earlier might never come to say anything.
        silence_s: how long one that falls silent stays so.
    """

    def __init__(self, target: int, *, every_s: float, silence_s: float, seed: int) -> None:
        self._target = target
        self._every_s = every_s
        self._silence_s = silence_s
        self._random = random.Random(seed)
        self._drawing = threading.Lock()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._clients: set[socket.socket] = set()
        self.port: int = self._listening.getsockname()[1]
        self.cuts = 0
        """Connections that it has cut while they were in use."""

    def __enter__(self) -> "Cutter":
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Every connection is ended, and a new one refused, for as long as the context lasts."""
        self._leave()
        for client in tuple(self._clients):
            _reset(client)
        yield
        self._listening = socket.create_server(("127.0.0.1", self.port))
        self._start()

    def _draw(self) -> tuple[float, str]:
        with self._drawing:
            return self._every_s * self._random.uniform(0.5, 1.5), self._random.choice(("reset", "close", "silence"))

    def _start(self) -> None:
        threading.Thread(target=self._accept, args=(self._listening,), daemon=True).start()

    def _leave(self) -> None:
        # Closing alone would not wake who waits in accept().
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self, listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._relay, args=(listening.accept()[0],), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", self._target))
        self._clients.add(client)
        silent, carries = threading.Event(), threading.Event()
        for one, other in ((client, server), (server, client)):
            threading.Thread(target=_pump, args=(one, other, silent, carries), daemon=True).start()
        lives_s, how = self._draw()
        carries.wait(3 * lives_s)
        time.sleep(lives_s)
        if how == "silence":
            silent.set()
            time.sleep(self._silence_s)
        if how != "close":
            _reset(client)
        self.cuts += 1
        self._clients.discard(client)
        for one in (client, server):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def _reset(one: socket.socket) -> None:
    with suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        one.shutdown(socket.SHUT_RDWR)


def _pump(one: socket.socket, other: socket.socket, silent: threading.Event, carries: threading.Event) -> None:
    carried = 0
    with suppress(OSError):
        while data := one.recv(CHUNK):
            carried += len(data)
            if carried >= CARRIED:
                carries.set()
            if not silent.is_set():
                other.sendall(data)
    with suppress(OSError):
        other.shutdown(socket.SHUT_WR)
