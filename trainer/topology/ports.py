"""Hold or check the port on which rank 0 will have the rendezvous store.

torch reports a taken port from inside a worker, seconds later and as a C++ error; here it is one line before the start.
"""

import random
import socket
from contextlib import suppress
from pathlib import Path

from trainer.shared.errors import UsageError
from trainer.shared.files import text_if_readable

_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""The first and the last port that the kernel gives to outgoing connections (ip(7))."""
_LOWEST, _NODE_PORTS = 10_000, 30_000
"""Few services listen between these: a Kubernetes node's own ports begin at 30,000."""
_TRIES = 100


def listen_on_free_port(*, lowest: int = _LOWEST, ephemeral: Path = _EPHEMERAL) -> socket.socket:
    """Return a socket that listens on a free port, for the process of rank 0, which inherits it.

    That process is ready only seconds later, after its import of torch. On a port that is free again meanwhile, another
    job's store could listen, and the other ranks would meet there.
    """
    first = int((text_if_readable(ephemeral).split() or [str(_NODE_PORTS)])[0])
    others = range(lowest, min(_NODE_PORTS, first))
    for port in random.SystemRandom().sample(others, min(_TRIES, len(others))):
        with suppress(OSError):
            return _listen(port)
    return _listen(0)


def free_port(*, lowest: int = _LOWEST, ephemeral: Path = _EPHEMERAL) -> int:
    """Return a port that is free now, and that no outgoing connection of this machine takes.

    Another process that listens can take it: prefer `listen_on_free_port`. If the kernel's range for outgoing
    connections leaves no other ports, return one of it.
    """
    with listen_on_free_port(lowest=lowest, ephemeral=ephemeral) as listener:
        return port_of(listener)


def port_of(listener: socket.socket) -> int:
    """Return the port on which it listens."""
    return int(listener.getsockname()[1])


def check_port_is_free(port: int, address: str) -> None:
    """Refuse a port on which another process of this machine listens.

    Raises:
        UsageError: The port is taken or needs privileges.
    """
    try:
        _listen(port).close()
    except PermissionError:
        raise UsageError(f"port {port} needs privileges: choose one from 1024 up with --master-port") from None
    except OSError:
        raise UsageError(f"port {port} on {address} is taken: choose another with --master-port") from None


def _listen(port: int) -> socket.socket:
    """Listen as torch's store does, on every address and in both families if possible."""
    # All ranks of a large job may connect before the store answers.
    backlog = socket.SOMAXCONN
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True)
    return socket.create_server(("", port), backlog=backlog)
