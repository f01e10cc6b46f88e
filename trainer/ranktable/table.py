"""Parse every published version of the rank table, or refuse it with the field, the value and the rule.

HCCL reports a bad table only at the first collective operation, as an inner error that names the operator; by then
the job holds every device. So this module checks the table before anything starts: a table that its controller has
marked completed can still hold ranks 8 to 15, every device twice, or devices without an address.

Formats: HCCL's user guide, "rank table configuration" for 910 and A2 (1.0 and group_list), A3 (1.2) and 950 (2.0).
"""

import ipaddress
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from trainer.ranktable.fields import Entry, Raw, is_ip, quote, refuse
from trainer.shared.errors import UsageError

NO_ADDRESS = "-1"  # the device plugin writes this for a device with a network card that does not answer
SERVER_ID_LIMIT = 64  # characters; HCCL's user guide


class NotReadyError(UsageError):
    """The table is half written, or its status is not `completed`. Waiting can help."""


class NotJsonError(UsageError):
    """The text is not JSON, whatever may follow it. No controller writes such a table: waiting does not help."""


@dataclass(frozen=True)
class RankedDevice:
    """One NPU. `device_id` is the physical id on its host; `device_ip` is None if the format has no address."""

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
        NotReadyError: `text` ends in the middle of JSON (it is still being written), or the status is not `completed`.
        NotJsonError: `text` is not the beginning of any JSON.
        UsageError: The table breaks a rule of the format; one line names the field, its value and the rule.
    """
    table = Entry.of(_document(text), "")
    status = table.text("status")
    if status != "completed":
        # The controllers keep the whole old server_list in a table that is initializing again: never read on.
        raise NotReadyError(f"status is {quote(status)}, not yet completed")
    if "group_list" in table.values:
        version, read = "group_list", _group_list
    else:
        readers = {"1.0": _server_list, "1.2": _super_pods, "2.0": _rank_list}
        version = table.text("version")
        if version not in readers:
            table.refuse("version", "is not one of 1.0, 1.2, 2.0")
        read = readers[version]
    servers = tuple(sorted(read(table), key=lambda server: server.devices[0].rank))
    _check_ranks(servers)
    _check_duplicates(servers)
    return RankTable(version=version, status=status, servers=servers)


def _document(text: str) -> Raw:
    if text[:1] in {"\ufeff", "\ufffd"}:
        raise NotJsonError("begins with a byte order mark (BOM), or is not UTF-8: save it as UTF-8 without a BOM")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"not valid JSON at line {error.lineno} column {error.colno}"
        if _is_cut_off(text, error):
            raise NotReadyError(f"{place}: half written?") from None
        raise NotJsonError(f"{place} ({error.msg}): JSON has no comments, and no comma after a last entry") from None
    except (RecursionError, ValueError) as error:  # nested too deep, or a number of thousands of digits
        raise UsageError(f"not a rank table: {error}") from None


def _is_cut_off(text: str, error: json.JSONDecodeError) -> bool:
    """Return whether more text could make it valid JSON; a file on NFS shows zeros where it is being written."""
    rest = text[error.pos :].strip()
    in_string = error.msg.startswith("Unterminated string") or (error.msg.startswith("Invalid \\u") and len(rest) < 6)
    return in_string or "\0" in text or any(word.startswith(rest) for word in ("true", "false", "null", "-"))


# 1.0: server_list; the operators and the hccl-controller write it for 910 and A2


def _server_list(table: Entry) -> list[Server]:
    entries = _counted(table, "server_list", "server_count")
    # On one server, HCCL lets A2 and A3 leave the address out; a written one must be an address.
    return [_server(entry, ip_optional=len(entries) == 1) for entry in entries]


def _counted(parent: Entry, key: str, count: str) -> list[Entry]:
    entries = parent.entries(key)
    parent.check_count(count, len(entries), key)
    return entries


def _server(entry: Entry, *, ip_optional: bool, super_pod: bool = False) -> Server:
    return Server(
        server_id=_server_id(entry),
        host_ip=entry.optional_ip("host_ip"),
        container_ip=entry.optional_ip("container_ip"),
        pod_name=None,
        devices=tuple(
            RankedDevice(
                rank=device.number("rank_id"),
                device_id=device.number("device_id"),
                device_ip=_device_ip(device, optional=ip_optional, placeholder=super_pod),
            )
            for device in entry.entries("device")
        ),
    )


# 1.2: server_list and super_pod_list; A3, whose devices reach each other without the RoCE network


def _super_pods(table: Entry) -> list[Server]:
    entries = _counted(table, "server_list", "server_count")
    servers = [_server(entry, ip_optional=True, super_pod=True) for entry in entries]
    pods = table.entries("super_pod_list")
    _refuse_repeated("super_pod_id", (pod.text("super_pod_id") for pod in pods), "every super pod is listed once")
    pod_of: dict[str, str] = {}
    for pod in pods:
        for member in pod.entries("server_list"):
            if pod_of.setdefault(member.text("server_id"), pod.text("super_pod_id")) != pod.text("super_pod_id"):
                member.refuse("server_id", "must be in one super pod")
    for server in servers:
        if server.server_id not in pod_of:
            refuse("server_id", server.server_id, "is in no super_pod_list entry")
    for server_id in pod_of:
        if server_id not in {server.server_id for server in servers}:
            refuse("super_pod_list's server_id", server_id, "is not in server_list")
    for pod in pods:
        own = (entry for entry in entries if pod_of[entry.text("server_id")] == pod.text("super_pod_id"))
        ids = [device.number("super_device_id") for entry in own for device in entry.entries("device")]
        if any(ids):  # the device plugin gives 0 to every device that is in no super pod
            _refuse_repeated("super_device_id", ids, "every device of a super pod has its own")
    return servers


# 2.0: rank_list, all numbers; 950. It names no server, so the innermost network tells servers apart


def _rank_list(table: Entry) -> list[Server]:
    entries = table.entries("rank_list")
    if table.whole("rank_count") != len(entries):
        table.refuse("rank_count", f"is not the number of rank_list entries, {len(entries)}")
    ranked = []
    for entry in entries:
        device = RankedDevice(entry.whole("rank_id"), entry.whole("device_id"), None)
        innermost = min(
            entry.entries("level_list"), key=lambda level: level.whole("net_layer")
        )  # the server or its rack
        ranked.append((device, entry.whole("local_id"), innermost.text("net_instance_id")))
    servers: list[tuple[str, list[RankedDevice]]] = []
    last_instance, last_local_id = "", -1
    for device, local_id, instance in sorted(ranked, key=lambda item: item[0].rank):
        # A pod numbers its devices upwards: a step back begins the next pod, on the same network or another.
        if not servers or instance != last_instance or local_id <= last_local_id:
            servers.append((instance, []))
        servers[-1][1].append(device)
        last_instance, last_local_id = instance, local_id
    return [Server(instance, None, None, None, tuple(devices)) for instance, devices in servers]


# group_list: "template two" of the old hccl-controller; the order of pods and devices implies the ranks


def _group_list(table: Entry) -> list[Server]:
    ranks = itertools.count()
    servers = []
    for group in _counted(table, "group_list", "group_count"):
        for instance in _instances(group):
            devices = tuple(
                RankedDevice(next(ranks), device.number("device_id"), _device_ip(device, optional=False))
                for device in instance.entries("devices")
            )
            servers.append(Server(_server_id(instance), None, None, instance.text("pod_name"), devices))
    return servers


def _instances(group: Entry) -> list[Entry]:
    """Return a group's pods in the order of their names: the controller writes them in any order (worker-1 first)."""
    # After a restart the controller keeps the dead pods' entries next to the new ones.
    entries = _counted(group, "instance_list", "instance_count")
    _refuse_repeated(f"{group.path}: pod_name", (entry.text("pod_name") for entry in entries), "a pod is listed once")
    group.check_count("device_count", sum(len(entry.entries("devices")) for entry in entries), "devices")
    return sorted(entries, key=lambda entry: _natural(entry.text("pod_name")))


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
    _refuse_repeated("rank_id", ranks, "every rank appears once")
    for rank in sorted(ranks):
        if rank >= len(ranks):
            refuse("rank_id", rank, f"is not below the number of devices, {len(ranks)}; ranks count from 0")
    for server in servers:
        own = [device.rank for device in server.devices]
        if max(own) - min(own) >= len(own):
            refuse(f"server {quote(server.server_id)}: rank_id", own, "must follow each other without a gap")


def _check_duplicates(servers: Iterable[Server]) -> None:
    # Two pods on one host share its server_id (operator 7.2, hccl-controller), but never a device.
    devices: dict[str, list[int]] = {}
    for server in servers:
        devices.setdefault(server.server_id, []).extend(device.device_id for device in server.devices)
    for server_id, ids in devices.items():
        _refuse_repeated(f"server {quote(server_id)}: device_id", ids, "one device has one rank")
    addresses = (device.device_ip for server in servers for device in server.devices)
    # The device plugin gives every virtual device 127.0.0.1.
    own = (address for address in addresses if address is not None and not ipaddress.ip_address(address).is_loopback)
    _refuse_repeated("device_ip", own, "every device has its own")


def _refuse_repeated(field: str, values: Iterable[object], rule: str) -> None:
    for value, times in Counter(values).items():
        if times > 1:
            refuse(field, value, f"appears {times} times; {rule}")


# Fields


def _server_id(entry: Entry) -> str:
    server_id = entry.text("server_id")
    if not 0 < len(server_id) <= SERVER_ID_LIMIT:
        cause = "an old device plugin under a new operator leaves it empty"
        entry.refuse("server_id", f"must be a name of 1 to {SERVER_ID_LIMIT} characters; {cause}")
    return server_id


def _device_ip(device: Entry, *, optional: bool, placeholder: bool = False) -> str | None:
    if optional and "device_ip" not in device.values:
        return None
    address = device.text("device_ip")
    if placeholder and address == NO_ADDRESS:
        return None
    if not is_ip(address):
        device.refuse("device_ip", "is not an IP address: the device's network card has no address")
    return address
