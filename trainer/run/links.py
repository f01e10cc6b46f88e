"""Connections between the supervisors of a job: lines of JSON, and an end that says that a supervisor is gone.

They outlive every group of workers. All nodes run the same version of this program, so messages need no version.
"""

import json
import select
import socket
from contextlib import suppress
from typing import Any

from trainer.shared.errors import UsageError

Message = dict[str, Any]

_LONGEST_LINE = 1 << 16
_CHUNK = 1 << 16
_CONNECT_S = 5.0
_KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 20, "TCP_KEEPCNT": 6, "TCP_USER_TIMEOUT": 180_000}
"""A node that was cut off is gone after three minutes (tcp(7)); gloo and HCCL survive shorter interruptions."""


class Link:
    """One connection. It never waits for the other end to speak."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._rest = b""
        connection.settimeout(_CONNECT_S)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def fileno(self) -> int:
        """Return the descriptor, which can be read when a message has come."""
        return self._socket.fileno()

    @property
    def own_address(self) -> str:
        """The address by which the other end reaches this machine; a Service's address leads to one port only."""
        return str(self._socket.getsockname()[0]).partition("%")[0].removeprefix("::ffff:")

    def send(self, message: Message) -> None:
        """Send a message; if the other end is gone, the next `receive` says so."""
        with suppress(OSError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def offer(self, message: Message) -> None:
        """Send a message, unless the other end has stopped reading: then it is lost."""
        ready = select.poll()
        ready.register(self._socket, select.POLLOUT)
        if ready.poll(0):
            self.send(message)

    def receive(self) -> list[Message] | None:
        """Return the messages that have come; None at the connection's end, or if the other end is another program."""
        try:
            chunk = self._socket.recv(_CHUNK, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        except OSError:
            return None
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if not chunk or len(self._rest) > _LONGEST_LINE:
            return None
        try:
            messages = [json.loads(line) for line in lines]
        except (ValueError, RecursionError):
            return None
        return messages if all(isinstance(message, dict) for message in messages) else None

    def close(self) -> None:
        """Close it."""
        self._socket.close()


def listen(port: int) -> socket.socket:
    """Listen on every address of this machine, without a wait for a connection.

    Raises:
        UsageError: The port is taken.
    """
    try:
        if socket.has_dualstack_ipv6():
            listener = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        else:
            listener = socket.create_server(("", port))
    except OSError:
        raise UsageError(f"port {port} is taken: choose another with --master-port") from None
    listener.setblocking(False)
    return listener


def link_to(address: str, port: int) -> Link | None:
    """Return a connection; None if the other supervisor does not listen yet."""
    try:
        return Link(socket.create_connection((address, port), timeout=_CONNECT_S))
    except OSError:
        return None
