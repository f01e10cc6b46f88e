"""Choose or check the port on which rank 0 will hold the rendezvous store.

torch reports a taken port from inside a worker, seconds later and as a C++ error; here it is a line before the start.
"""

import random
import socket
from contextlib import suppress
from pathlib import Path

from trainer.shared.errors import UsageError

EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""The first and the last port that the kernel gives to outgoing connections (ip(7))."""
LOWEST, NODE_PORTS = 10_000, 30_000
"""Few services listen between them: a Kubernetes node's own ports begin at 30,000."""
TRIES = 100


def free_port() -> int:
    """A port that is free, and that no outgoing connection of this machine takes before the store listens.

    A worker listens only seconds later, when it has imported torch; a port of the kernel's range for outgoing
    connections may be one's by then. Where that range leaves no others, it is one of them.
    """
    others = range(LOWEST, min(NODE_PORTS, int(EPHEMERAL.read_text().split()[0])))
    for port in random.SystemRandom().sample(others, min(TRIES, len(others))):
        with suppress(OSError):
            return _tried(port)
    return _tried(0)


def check_port_is_free(port: int, address: str) -> None:
    """Refuse a port on which another process of this machine listens.

    Raises:
        UsageError: the port is taken or needs privileges.
    """
    try:
        _tried(port)
    except PermissionError:
        raise UsageError(f"port {port} needs privileges: choose one from 1024 up with --master-port") from None
    except OSError:
        raise UsageError(f"port {port} on {address} is taken: choose another with --master-port") from None


def _tried(port: int) -> int:
    """Listen for a moment as torch's store does: on every address, both families where the machine has them."""
    if socket.has_dualstack_ipv6():
        listener = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    else:
        listener = socket.create_server(("", port))
    with listener:
        return int(listener.getsockname()[1])
