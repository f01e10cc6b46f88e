"""Read every published version of the rank table, or refuse it with the field, the value and the rule.

HCCL reports a bad table only at the first collective operation, as an inner error that names the operator; by then
the job holds every device. So this module checks the table before anything starts: a table that its controller has
marked completed can still hold ranks 8 to 15, every device twice, or devices without an address.

Formats: HCCL's user guide, "rank table configuration" for 910 and A2 (1.0 and group_list), A3 (1.2) and 950 (2.0).
"""

import ipaddress
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from trainer.ranktable.fields import (
    Raw,
    check_count,
    is_ip,
    list_of,
    number_of,
    object_of,
    optional_ip,
    path_of,
    quote,
    refuse,
    text_of,
    whole_of,
)
from trainer.shared.errors import UsageError

NO_ADDRESS = "-1"  # the device plugin writes this for a device with a network card that does not answer
SERVER_ID_LIMIT = 64  # characters; HCCL's user guide
EMPTY_ID = "an old device plugin under a new operator leaves it empty"


class NotReadyError(UsageError):
    """The table is half written, or its status is not `completed`. Waiting can help."""


@dataclass(frozen=True)
class RankedDevice:
    """One NPU. `device_id` is the physical id on its host; `device_ip` is None if the format needs none."""

    rank: int
    device_id: int
    device_ip: str | None


@dataclass(frozen=True)
class Server:
    """The devices of one pod (or host), in the table's order. Two servers of a table can have the same id."""

    server_id: str
    host_ip: str | None
    container_ip: str | None
    pod_name: str | None
    devices: tuple[RankedDevice, ...]


@dataclass(frozen=True)
class RankTable:
    """A valid table, its servers in the order of their ranks. `version` is 1.0, 1.2, 2.0 or group_list."""

    version: str
    status: str
    servers: tuple[Server, ...]

    @property
    def world_size(self) -> int:
        """The number of devices of the whole job."""
        return sum(len(server.devices) for server in self.servers)


def parse(text: str) -> RankTable:
    """Read a table.

    Raises:
        NotReadyError: `text` is not JSON (it is still being written) or the status is not `completed`.
        UsageError: The table breaks a rule of its format; one line names the field, its value and the rule.
    """
    try:
        table = json.loads(text)
    except json.JSONDecodeError as error:
        raise NotReadyError(f"not valid JSON at line {error.lineno} column {error.colno}: half written?") from None
    except (RecursionError, ValueError) as error:  # nested too deep, or a number of thousands of digits
        raise UsageError(f"not a rank table: {error}") from None
    if not isinstance(table, dict):
        refuse("the table", table, "must be a JSON object")
    status = text_of(table, "status", "")
    if status != "completed":
        # The controllers keep the whole old server_list in a table that is initializing again: never read on.
        raise NotReadyError(f"status is {quote(status)}, not yet completed")
    version, read = _reader(table)
    servers = tuple(sorted(read(table), key=lambda server: server.devices[0].rank))
    _check_ranks(servers)
    _check_duplicates(servers)
    return RankTable(version=version, status=status, servers=servers)


def _reader(table: Mapping[str, Raw]) -> tuple[str, Callable[[Mapping[str, Raw]], Sequence[Server]]]:
    if "group_list" in table:
        return "group_list", _group_list
    version = text_of(table, "version", "")
    readers = {"1.0": _server_list, "1.2": _super_pods, "2.0": _rank_list}
    if version not in readers:
        refuse("version", version, "is not one of 1.0, 1.2, 2.0")
    return version, readers[version]


# 1.0: server_list; the operators and the hccl-controller write it for 910 and A2


def _server_list(table: Mapping[str, Raw]) -> list[Server]:
    entries = list_of(table, "server_list", "")
    check_count(table, "server_count", "", len(entries), "server_list")
    # On one server, HCCL lets A2 and A3 leave the address out; a written one must be an address.
    return [_server(entry, f"server_list[{i}]", ip_optional=len(entries) == 1) for i, entry in enumerate(entries)]


def _server(entry: Raw, parent: str, *, ip_optional: bool, super_pod: bool = False) -> Server:
    object_of(entry, parent)
    devices = list_of(entry, "device", parent)
    return Server(
        server_id=_server_id(entry, parent),
        host_ip=optional_ip(entry, "host_ip", parent),
        container_ip=optional_ip(entry, "container_ip", parent),
        pod_name=None,
        devices=tuple(
            RankedDevice(
                rank=number_of(object_of(device, f"{parent}.device[{i}]"), "rank_id", f"{parent}.device[{i}]"),
                device_id=number_of(device, "device_id", f"{parent}.device[{i}]"),
                device_ip=_device_ip(device, f"{parent}.device[{i}]", optional=ip_optional, placeholder=super_pod),
            )
            for i, device in enumerate(devices)
        ),
    )


# 1.2: server_list and super_pod_list; A3, whose devices reach each other without the RoCE network


def _super_pods(table: Mapping[str, Raw]) -> list[Server]:
    entries = list_of(table, "server_list", "")
    check_count(table, "server_count", "", len(entries), "server_list")
    servers = []
    for i, entry in enumerate(entries):
        servers.append(_server(entry, f"server_list[{i}]", ip_optional=True, super_pod=True))
        for j, device in enumerate(entry["device"]):
            number_of(device, "super_device_id", f"server_list[{i}].device[{j}]")
    members: list[str] = []
    for i, pod in enumerate(list_of(table, "super_pod_list", "")):
        text_of(object_of(pod, f"super_pod_list[{i}]"), "super_pod_id", f"super_pod_list[{i}]")
        for j, member in enumerate(list_of(pod, "server_list", f"super_pod_list[{i}]")):
            parent = f"super_pod_list[{i}].server_list[{j}]"
            members.append(text_of(object_of(member, parent), "server_id", parent))
    for server in servers:
        if server.server_id not in members:
            refuse("server_id", server.server_id, "is in no super_pod_list entry")
    for member in members:
        if member not in {server.server_id for server in servers}:
            refuse("super_pod_list's server_id", member, "is not in server_list")
    return servers


# 2.0: rank_list, all numbers; 950. It names no server, so the innermost network tells servers apart


def _rank_list(table: Mapping[str, Raw]) -> list[Server]:
    entries = list_of(table, "rank_list", "")
    count = whole_of(table, "rank_count", "")
    if count != len(entries):
        refuse("rank_count", count, f"is not the number of rank_list entries, {len(entries)}")
    ranked = []
    for i, entry in enumerate(entries):
        parent = f"rank_list[{i}]"
        rank, device_id, local_id = (
            whole_of(object_of(entry, parent), key, parent) for key in ("rank_id", "device_id", "local_id")
        )
        ranked.append((rank, _instance(entry, parent), local_id, RankedDevice(rank, device_id, None)))
    servers: list[tuple[str, list[RankedDevice]]] = []
    last_instance, last_local_id = "", -1
    for _, instance, local_id, device in sorted(ranked, key=lambda item: item[0]):
        # A pod numbers its devices upwards: a step back begins the next pod, on the same network or another.
        if not servers or instance != last_instance or local_id <= last_local_id:
            servers.append((instance, []))
        servers[-1][1].append(device)
        last_instance, last_local_id = instance, local_id
    return [Server(instance, None, None, None, tuple(devices)) for instance, devices in servers]


def _instance(entry: Mapping[str, Raw], parent: str) -> str:
    """Return the network instance of the innermost layer: the server, or its rack."""
    levels = list_of(entry, "level_list", parent)
    for i, level in enumerate(levels):
        whole_of(object_of(level, f"{parent}.level_list[{i}]"), "net_layer", f"{parent}.level_list[{i}]")
    innermost = min(range(len(levels)), key=lambda i: levels[i]["net_layer"])
    return text_of(levels[innermost], "net_instance_id", f"{parent}.level_list[{innermost}]")


# group_list: "template two" of the old hccl-controller; the order of pods and devices implies the ranks


def _group_list(table: Mapping[str, Raw]) -> list[Server]:
    groups = list_of(table, "group_list", "")
    check_count(table, "group_count", "", len(groups), "group_list")
    servers: list[Server] = []
    rank = 0
    for i, group in enumerate(groups):
        for parent, instance in _instances(object_of(group, f"group_list[{i}]"), f"group_list[{i}]"):
            devices = []
            for j, device in enumerate(list_of(instance, "devices", parent)):
                path = f"{parent}.devices[{j}]"
                device_id = number_of(object_of(device, path), "device_id", path)
                devices.append(RankedDevice(rank, device_id, _device_ip(device, path, optional=False)))
                rank += 1
            pod_name = text_of(instance, "pod_name", parent)
            servers.append(Server(_server_id(instance, parent), None, None, pod_name, tuple(devices)))
    return servers


def _instances(group: Mapping[str, Raw], parent: str) -> list[tuple[str, Mapping[str, Raw]]]:
    """Return a group's pods in the order of their names: the controller writes them in any order (worker-1 first)."""
    entries = list_of(group, "instance_list", parent)
    # After a restart the controller keeps the dead pods' entries next to the new ones.
    check_count(group, "instance_count", parent, len(entries), "instance_list")
    entries_by_path = [(f"{parent}.instance_list[{i}]", entry) for i, entry in enumerate(entries)]
    names = [text_of(object_of(entry, path), "pod_name", path) for path, entry in entries_by_path]
    for name, times in Counter(names).items():
        if times > 1:
            refuse(f"{parent}: pod_name", name, f"appears {times} times")
    check_count(
        group,
        "device_count",
        parent,
        sum(len(list_of(entry, "devices", path)) for path, entry in entries_by_path),
        "devices",
    )
    return [entries_by_path[i] for i in sorted(range(len(entries_by_path)), key=lambda i: _natural(names[i]))]


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key that puts worker-2 before worker-10."""
    return [
        (0, int(part), part) if part.isascii() and part.isdigit() else (1, 0, part)
        for part in re.split(r"(\d{1,18})", name)
        if part
    ]


# Rules of the whole table


def _check_ranks(servers: Iterable[Server]) -> None:
    ranks = [device.rank for server in servers for device in server.devices]
    for rank, times in Counter(ranks).items():
        if times > 1:
            refuse("rank_id", rank, f"appears {times} times; every rank appears once")
    for rank in sorted(ranks):
        if rank >= len(ranks):
            refuse("rank_id", rank, f"is not below the number of devices, {len(ranks)}; ranks count from 0")
    for server in servers:
        own = [device.rank for device in server.devices]
        if max(own) - min(own) >= len(own):
            refuse(f"server {quote(server.server_id)}: rank_id", own, "must follow each other without a gap")


def _check_duplicates(servers: Iterable[Server]) -> None:
    # Two pods on one host share its server_id (operator 7.2, hccl-controller), but never a device.
    devices = Counter((server.server_id, device.device_id) for server in servers for device in server.devices)
    for (server_id, device_id), times in devices.items():
        if times > 1:
            refuse(
                f"server {quote(server_id)}: device_id", device_id, f"appears {times} times; one device has one rank"
            )
    addresses = Counter(device.device_ip for server in servers for device in server.devices)
    for address, times in addresses.items():
        # The device plugin gives every virtual device 127.0.0.1.
        if address is not None and times > 1 and not ipaddress.ip_address(address).is_loopback:
            refuse("device_ip", address, f"appears {times} times; every device has its own")


# Fields


def _server_id(entry: Mapping[str, Raw], parent: str) -> str:
    server_id = text_of(entry, "server_id", parent)
    if not 0 < len(server_id) <= SERVER_ID_LIMIT:
        rule = f"must be a name of 1 to {SERVER_ID_LIMIT} characters; {EMPTY_ID}"
        refuse(path_of(parent, "server_id"), server_id, rule)
    return server_id


def _device_ip(device: Mapping[str, Raw], parent: str, *, optional: bool, placeholder: bool = False) -> str | None:
    if optional and "device_ip" not in device:
        return None
    address = text_of(device, "device_ip", parent)
    if placeholder and address == NO_ADDRESS:
        return None
    if not is_ip(address):
        refuse(path_of(parent, "device_ip"), address, "is not an IP address: the device's network card has none")
    return address
