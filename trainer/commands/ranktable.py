"""`python -m trainer ranktable`: check whether a job could start from a rank table, and explain the table.

It reads the table by the same code as a job's start, so a table that passes here passes there. It imports neither torch
nor a device's code, and works in a pod, on a node and on a laptop.
"""

import ipaddress
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from cyclopts.validators import Number

from trainer.commands import AsJson
from trainer.ranktable.fields import quote_if_needed
from trainer.ranktable.identity import POD_UID, Identity, find_me
from trainer.ranktable.table import NotReadyError, RankTable, Server, parse
from trainer.shared.documents import document, json_text, to_json
from trainer.shared.durations import count
from trainer.shared.errors import TrainerError, UsageError
from trainer.shared.files import read_file
from trainer.shared.text import visible

_ANNOTATION = "ascend.kubectl.kubernetes.io/ascend-910-configuration"
# MindCluster's FAQ: the annotation tells which of three programs is the cause.
_NOT_COMPLETED = (
    "look again in a moment; its controller completes it when the last pod of the job has the annotation "
    f"{_ANNOTATION}: if a pod lacks it, see the device plugin; if one has a device_ip of -1, see the NPU's network "
    "card (hccn_tool); if all are valid, see the controller, and the label ring-controller.atlas"
)

ranktable_app = App(name="ranktable")


@ranktable_app.command(name="check")
def check_rank_table(
    path: Path,
    /,
    *,
    devices: Annotated[int | None, Parameter(converter=count, validator=Number(gte=1), show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Say whether a job could start from a rank table; exit code 1 if not, 2 if there is no such file.

    In a pod that knows itself (POD_UID, POD_IP, POD_NAME or HOST_IP), the table must contain this pod, too.

    Parameters
    ----------
    path
        The table: a file, or a volume's symlink.
    devices
        Number of devices of the whole job.
    """
    table, own_server = _read(path, devices)
    if as_json:
        print(json_text(_document(path, table, own_server)))
    else:
        ranks = f"; this pod has {_ranks(own_server)}" if own_server else ""
        print(visible(f"{path}: valid; {_summary(table)}{ranks}"))


@ranktable_app.command(name="show")
def show_rank_table(path: Path, /, *, as_json: AsJson = False) -> None:
    """Explain a rank table: each pod's ranks and devices, the master, and unusual facts.

    Exit code 1 if no job could start from it, 2 if there is no such file.

    Parameters
    ----------
    path
        The table: a file, or a volume's symlink.
    """
    table, own_server = _read(path)
    if as_json:
        print(json_text(_document(path, table, own_server)))
    else:
        print("\n".join(map(visible, _lines(table, own_server))))


def _read(path: Path, devices: int | None = None) -> tuple[RankTable, Server | None]:
    """Return the table and this pod's entry; None if this is no pod, or a pod that does not know itself."""
    try:
        text = read_file(path).decode(errors="replace")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}; give a rank table's file") from error
    identity = Identity.from_environ(os.environ)
    try:
        table = parse(text)
        if devices is not None and table.world_size != devices:
            raise TrainerError(f"{path}: has {table.world_size} devices, not {devices}")
        return table, find_me(table, identity) if identity.names else None
    except NotReadyError as error:
        raise TrainerError(f"{path}: {error}; {_NOT_COMPLETED}") from error
    except UsageError as error:
        raise TrainerError(f"{path}: {error}") from error


def _document(path: Path, table: RankTable, own_server: Server | None) -> dict[str, Any]:
    own_ranks = None if own_server is None else [device.rank for device in own_server.devices]
    return document(
        "RankTable",
        path=str(path),
        worldSize=table.world_size,
        **to_json(table),
        ownRanks=own_ranks,
        remarks=list(_remarks(table)),
    )


def _summary(table: RankTable) -> str:
    servers = len(table.servers)
    return f"version {table.version}, {table.world_size} devices of {servers} {'server' if servers == 1 else 'servers'}"


def _ranks(server: Server) -> str:
    first, last = server.devices[0].rank, max(device.rank for device in server.devices)
    return f"rank {first}" if first == last else f"ranks {first} to {last}"


def _lines(table: RankTable, own_server: Server | None) -> Iterator[str]:
    yield _summary(table)
    first = table.servers[0]
    master = first.container_ip or first.host_ip or first.pod_name or first.server_id
    yield f"master      {quote_if_needed(master)}, which has rank 0"
    for server in table.servers:
        yield ""
        yield f"{_ranks(server)}{', this pod' if server is own_server else ''}"
        names = {
            "server_id": server.server_id,
            "pod": server.pod_name,
            "pod's IP": server.container_ip,
            "host's IP": server.host_ip,
        }
        yield from (f"  {name:<10}{quote_if_needed(value)}" for name, value in names.items() if value)
        yield "  rank  device  device_ip"
        yield from (
            f"  {device.rank:>4}  {device.device_id:>6}  {device.device_ip or 'none'}" for device in server.devices
        )
    remarks = list(_remarks(table))
    yield from ["", *remarks] if remarks else []


def _remarks(table: RankTable) -> Iterator[str]:
    """Yield facts that are right but may surprise the user."""
    if any(POD_UID.fullmatch(server.server_id) for server in table.servers):
        yield "server_id is a pod's UID: a device plugin from 7.3 on writes it so for pods that share a node"
    hosts = Counter(server.host_ip or server.server_id for server in table.servers)
    for host, pods in hosts.items():
        if pods > 1:
            yield f"{pods} pods share the node {quote_if_needed(host)}, each with its own devices"
    addresses = [device.device_ip for server in table.servers for device in server.devices]
    if None in addresses:
        yield "devices without a device_ip: a single server, or a super pod, reaches them without the RoCE network"
    if any(address is not None and ipaddress.ip_address(address).is_loopback for address in addresses):
        yield "a device_ip of this machine itself: the device plugin gives it to virtual devices"
    order = [device.device_id for server in table.servers for device in server.devices]
    if any(list(ids) != sorted(ids) for ids in ([d.device_id for d in server.devices] for server in table.servers)):
        yield f"ranks do not follow the devices' numbers: {', '.join(map(str, order))}"
