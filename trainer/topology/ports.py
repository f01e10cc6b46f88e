"""Choose or check the port on which rank 0 will hold the rendezvous store.

torch reports a taken port from inside a worker, seconds later and as a C++ error; here it is a line before the start.
"""

import socket

from trainer.errors import UsageError


def free_port() -> int:
    """A port that was free a moment ago, for a store that only this machine reaches."""
    with _listening(0) as listener:
        return int(listener.getsockname()[1])


def check_port_is_free(port: int, address: str) -> None:
    """Refuse a port on which another process of this machine listens.

    Raises:
        UsageError: the port is taken or needs privileges.
    """
    try:
        _listening(port).close()
    except PermissionError:
        raise UsageError(f"port {port} needs privileges: choose one from 1024 up with --master-port") from None
    except OSError:
        raise UsageError(f"port {port} on {address} is taken: choose another with --master-port") from None


def _listening(port: int) -> socket.socket:
    """Listen as torch's store does: on every address, both families where the machine has them."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))
