"""A TCP proxy to the API server that cuts connections at random: by reset, by close, or by silence and then reset.

It can also be unavailable for a while, like a server that restarts.
"""

import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

CHUNK = 1 << 16
HANDSHAKE_BYTES = 8 << 10
"""More bytes than the TLS handshake takes: after them, the connection carries requests and answers."""
# SO_LINGER on, with a time of zero: close() sends a reset.
_RESET = struct.pack("ii", 1, 0)


class CuttingProxy:
    """Listen on a free port while the context lasts.

    Args:
        target: the port on 127.0.0.1 to which the proxy connects.
        every_s: about how long a connection lives after it begins to carry data, or three times as long without data.
            On a busy machine, a shorter life before the first data could end a connection before it is used.
        silence_s: how long a silent connection stays silent before its reset.
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
        """Connections that the proxy has cut while they were in use."""

    def __enter__(self) -> "CuttingProxy":
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    @contextmanager
    def unavailable(self) -> Iterator[None]:
        """End every connection, and refuse new ones, while the context lasts."""
        self._stop()
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

    def _stop(self) -> None:
        # close() without shutdown() would not wake a thread that waits in accept().
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
        for source, destination in ((client, server), (server, client)):
            threading.Thread(target=_pump, args=(source, destination, silent, carries), daemon=True).start()
        life_s, ending = self._draw()
        carries.wait(3 * life_s)
        time.sleep(life_s)
        if ending == "silence":
            silent.set()
            time.sleep(self._silence_s)
        if ending != "close":
            _reset(client)
        self.cuts += 1
        self._clients.discard(client)
        for end in (client, server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def _reset(client: socket.socket) -> None:
    with suppress(OSError):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        client.shutdown(socket.SHUT_RDWR)


def _pump(source: socket.socket, destination: socket.socket, silent: threading.Event, carries: threading.Event) -> None:
    carried = 0
    with suppress(OSError):
        while data := source.recv(CHUNK):
            carried += len(data)
            if carried >= HANDSHAKE_BYTES:
                carries.set()
            if not silent.is_set():
                destination.sendall(data)
    with suppress(OSError):
        destination.shutdown(socket.SHUT_WR)
