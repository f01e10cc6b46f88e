"""The addresses over which a job's processes meet: one that does not exist or cannot be reached is refused at once.

torch would wait for it for half an hour, or let gloo listen where no other node can connect.
"""

import ipaddress
import socket
from collections.abc import Mapping
from contextlib import suppress

from trainer.shared.errors import UsageError

LOOPBACKS = {"127.0.0.1": socket.AF_INET, "::1": socket.AF_INET6}
"""The addresses of a machine for itself, the usual one first."""
_POD_VARIABLES = {"KUBERNETES_SERVICE_HOST", "POD_NAME"}
_DISCARD = 9  # any port: nothing is sent


def loopback() -> str | None:
    """Return the address of this machine for itself; None if its loopback interface is down."""
    return next((address for address, family in LOOPBACKS.items() if _has_route(address, family)), None)


def check_addresses(master_addr: str, *, nodes: int, environ: Mapping[str, str]) -> None:
    """Refuse addresses of a job with several processes that its nodes cannot reach each other by.

    Raises:
        UsageError: rank 0's name does not resolve, or the other nodes could not connect to this one.
    """
    try:
        master = _resolve(master_addr)
    except OSError as error:
        if _POD_VARIABLES.isdisjoint(environ):
            raise UsageError(
                f"the address of rank 0, {master_addr}, cannot be found: {error.strerror}; check --master-addr"
            ) from None
        master = []  # a pod's name resolves as soon as the pod has an address: torch waits for it
    is_on_this_machine = any(ipaddress.ip_address(address).is_loopback for address in master)
    if nodes == 1 or is_on_this_machine or environ.get("GLOO_SOCKET_IFNAME"):
        return
    name = socket.gethostname()
    try:
        own = next((address for address in _resolve(name) if _is_own(address)), None)
    except OSError:
        own = None
    if own is None or ipaddress.ip_address(own).is_loopback:
        fault = f"resolves to {own}, its address for itself" if own else "does not resolve to one of its addresses"
        raise UsageError(
            f"this machine's name {name} {fault}, so other nodes could not connect: correct /etc/hosts, or set "
            "GLOO_SOCKET_IFNAME to the interface of the nodes' network"
        )


def _resolve(name: str) -> list[str]:
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return [str(address[0]).partition("%")[0] for *_, address in found]


def _is_own(address: str) -> bool:
    """Return whether this machine has the address, which is how gloo chooses among the addresses of a name."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.bind((address, 0))
        return True
    return False


def _has_route(address: str, family: int) -> bool:
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((address, _DISCARD))
        return bool(probe.getsockname()[0] == address)
    return False
