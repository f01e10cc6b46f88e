"""Choose or check the port on which rank 0 will hold the rendezvous store.

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


def free_port(*, lowest: int = _LOWEST, ephemeral: Path = _EPHEMERAL) -> int:
    """Return a free port that no outgoing connection of this machine takes before the store listens.

    A worker listens only seconds later, after its import of torch. By then an outgoing connection can have taken a port
    of the kernel's range for such connections. If that range leaves no other ports, return one of it.
    """
    first = int((text_if_readable(ephemeral).split() or [str(_NODE_PORTS)])[0])
    others = range(lowest, min(_NODE_PORTS, first))
    for port in random.SystemRandom().sample(others, min(_TRIES, len(others))):
        with suppress(OSError):
            return _listen(port)
    return _listen(0)


def check_port_is_free(port: int, address: str) -> None:
    """Refuse a port on which another process of this machine listens.

    Raises:
        UsageError: The port is taken or needs privileges.
    """
    try:
        _listen(port)
    except PermissionError:
        raise UsageError(f"port {port} needs privileges: choose one from 1024 up with --master-port") from None
    except OSError:
        raise UsageError(f"port {port} on {address} is taken: choose another with --master-port") from None


def _listen(port: int) -> int:
    """Listen for a moment as torch's store does, on every address and in both families if possible; return the port."""
    if socket.has_dualstack_ipv6():
        listener = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    else:
        listener = socket.create_server(("", port))
    with listener:
        return int(listener.getsockname()[1])
