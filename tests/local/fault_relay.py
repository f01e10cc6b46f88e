"""A TCP relay to a server on 127.0.0.1 that fails by a plan: each way in which a connection can break or stop.

It tells connections that carry logs from the others by their first request, which is not encrypted; through TLS, all
connections count as both.
"""

import math
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, TypeVar

Kind = Literal["reset", "end", "half-close", "silence", "slowness", "black hole", "server killed"]
Relay = TypeVar("Relay", bound="FaultRelay")
Victims = Literal["logs", "others", "all"]
# SO_LINGER on, with a time of zero: close() sends a reset.
_RESET = struct.pack("ii", 1, 0)
_TICK_S = 0.02
HANDSHAKE_BYTES = 8 << 10
"""More bytes than a TLS handshake takes: after them, a connection carries requests and answers."""
_BLOCK = 1 << 14


@dataclass(frozen=True)
class Fault:
    """What happens to the open connections at a moment.

    Attributes:
        at_s: seconds after the first connection.
        lasts_s: of a silence, slowness, black hole or dead server. A black hole ends for new connections only: the
            older ones stay silent.
        victims: a black hole hits new connections too, and a dead server all of them.
        bytes_per_s: of slowness.
    """

    at_s: float
    kind: Kind
    victims: Victims = "all"
    lasts_s: float = math.inf
    bytes_per_s: float = 20_000


class FaultRelay:
    """Listens on a free port while the context lasts.

    Args:
        target: the port to which the relay connects.
        begin: called at the first connection, with which the plan begins.
    """

    def __init__(self, target: int, faults: Sequence[Fault] = (), begin: Callable[[], None] = lambda: None) -> None:
        self._target = target
        self._begin = begin
        self._has_begun = threading.Event()
        self._faults = sorted(faults, key=lambda fault: fault.at_s)
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listening.getsockname()[1]
        self._connections: set[Connection] = set()
        self._hole: Victims = "all"
        self._hole_until = 0.0
        self._ended = threading.Event()

    def __enter__(self: Relay) -> Relay:
        self._listen()
        threading.Thread(target=self._act, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._has_begun.set()
        self._close()
        for connection in tuple(self._connections):
            connection.close()

    def _listen(self) -> None:
        threading.Thread(target=self._accept, args=(self._listening,), daemon=True).start()

    def _close(self) -> None:
        # close() without shutdown() would not wake a thread that waits in accept().
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self, listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client = listening.accept()[0]
                if not self._has_begun.is_set():
                    self._begin()
                    self._has_begun.set()
                try:
                    server = socket.create_connection(("127.0.0.1", self._target))
                except OSError:  # the server restarts
                    client.close()
                    continue
                connection = Connection(client, server, self._is_in_hole)
                self._connections.add(connection)
                connection.start()
                self.accepted(connection)

    def accepted(self, connection: "Connection") -> None:
        """Begin what happens to this connection in addition to the plan."""

    def _is_in_hole(self, connection: "Connection") -> bool:
        return time.monotonic() < self._hole_until and connection.is_victim(self._hole)

    def _act(self) -> None:
        self._has_begun.wait()
        began = time.monotonic()
        for fault in self._faults:
            if self._ended.wait(max(0.0, began + fault.at_s - time.monotonic())):
                return
            if fault.kind == "server killed":
                self.kill_server()
                if not self._ended.wait(fault.lasts_s):
                    self.restart_server()
                continue
            until = time.monotonic() + fault.lasts_s
            if fault.kind == "black hole":
                self._hole, self._hole_until = fault.victims, until
            for connection in [item for item in tuple(self._connections) if item.is_victim(fault.victims)]:
                connection.suffer(fault, until)

    def kill_server(self) -> None:
        """Reset every connection, and refuse new ones."""
        self._close()
        for connection in tuple(self._connections):
            connection.reset()
        self._connections.clear()

    def restart_server(self) -> None:
        """Accept connections again, on the same port."""
        self._listening = socket.create_server(("127.0.0.1", self.port), backlog=128)
        self._listen()


class Connection:
    """A client's connection and the relay's own to the server."""

    def __init__(
        self, client: socket.socket, server: socket.socket, is_in_hole: Callable[["Connection"], bool]
    ) -> None:
        self._is_in_hole = is_in_hole
        self._client = client
        self._server = server
        self._closed = threading.Event()
        self._carries: Victims = "all"
        self._slow_until = 0.0
        self._bytes_per_s = math.inf
        self.silent_until = 0.0
        self.is_in_use = threading.Event()
        """Set after more bytes than a handshake takes, in one direction."""

    def start(self) -> None:
        for source, destination in ((self._client, self._server), (self._server, self._client)):
            threading.Thread(target=self._pump, args=(source, destination), daemon=True).start()

    def is_victim(self, victims: Victims) -> bool:
        return "all" in (victims, self._carries) or victims == self._carries

    def suffer(self, fault: Fault, until: float) -> None:
        if fault.kind == "reset":
            self.reset()
        elif fault.kind == "end":
            self.close()
        elif fault.kind == "half-close":
            with suppress(OSError):
                self._client.shutdown(socket.SHUT_WR)
        elif fault.kind == "slowness":
            self._slow_until, self._bytes_per_s = until, fault.bytes_per_s
        else:
            self.silent_until = until if fault.kind == "silence" else math.inf

    def reset(self) -> None:
        with suppress(OSError):
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        # Another thread waits for the client's data, and keeps the socket open until it wakes. Only the reading end is
        # shut down, because the writing end would send a FIN in place of the reset.
        self._close(socket.SHUT_RD)

    def close(self) -> None:
        self._close(socket.SHUT_RDWR)

    def _close(self, how: int) -> None:
        self._closed.set()
        for end, end_how in ((self._client, how), (self._server, socket.SHUT_RDWR)):
            with suppress(OSError):
                end.shutdown(end_how)
            end.close()

    def _pump(self, source: socket.socket, destination: socket.socket) -> None:
        carried = 0
        with suppress(OSError):
            while data := source.recv(_BLOCK):
                carried += len(data)
                if carried >= HANDSHAKE_BYTES:
                    self.is_in_use.set()
                if source is self._client and b" HTTP/1." in data:
                    self._carries = "logs" if b"/log?" in data else "others"
                if source is self._client and self._is_in_hole(self):
                    self.silent_until = math.inf
                while time.monotonic() < self.silent_until and not self._closed.wait(_TICK_S):
                    pass
                if time.monotonic() < self._slow_until:
                    self._closed.wait(len(data) / self._bytes_per_s)
                destination.sendall(data)
        # The end of a silent connection does not arrive either.
        while time.monotonic() < self.silent_until and not self._closed.wait(_TICK_S):
            pass
        if not self._closed.is_set():
            with suppress(OSError):
                destination.shutdown(socket.SHUT_WR)
