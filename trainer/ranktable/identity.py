"""Find the server of a rank table that is this pod, and never take a dead job's entry for it.

A table names a pod in up to four ways, and each can be missing: server_id is a pod's UID or a host's address, depending
on the controller and on how many pods share a host. So they are tried from the surest to the weakest.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from trainer.ranktable.fields import quote_if_needed
from trainer.ranktable.table import RankTable, Server
from trainer.shared.errors import UsageError

POD_UID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Identity:
    """The facts that this process knows about itself; None or empty for unknown ones.

    In a manifest all of them come from `fieldRef`: metadata.uid, metadata.name, status.podIP, status.hostIP.
    """

    pod_uid: str | None = None
    pod_ip: str | None = None
    pod_name: str | None = None
    host_ip: str | None = None
    node_rank: int | None = None  # used only if the table has no names (2.0), or if nothing else is known

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], *, node_rank: int | None = None) -> "Identity":
        """Read POD_UID, POD_IP, POD_NAME, and HOST_IP, NODE_IP or XDL_IP (the host's IP in MindCluster's samples)."""
        host_ip = environ.get("HOST_IP") or environ.get("NODE_IP") or environ.get("XDL_IP")
        return cls(environ.get("POD_UID"), environ.get("POD_IP"), environ.get("POD_NAME"), host_ip, node_rank)

    @property
    def names(self) -> dict[str, str]:
        """The known facts, by the variable that usually carries each."""
        facts = {"POD_UID": self.pod_uid, "POD_IP": self.pod_ip, "POD_NAME": self.pod_name, "HOST_IP": self.host_ip}
        return {name: value for name, value in facts.items() if value}


def find_me(table: RankTable, identity: Identity) -> Server:
    """Return this pod's entry: by UID, then by the pod's IP, then by its name, then by a host IP that is unique.

    Raises:
        UsageError: No entry is this pod (the table may be a dead job's), or more than one could be.
    """
    possible = [server for server in table.servers if not _is_other_pod(server, identity)]
    for matches in _matches(possible, identity):
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise UsageError(
                f"the table has {len(matches)} entries that could be this pod ({_mine(identity)}): "
                "set POD_UID from metadata.uid"
            )
    if not identity.names or table.version == "2.0":  # version 2.0 names neither pods nor hosts
        return _by_position(table, possible, identity)
    raise UsageError(
        f"the table does not contain this pod: it has {_theirs(table)}, looked for {_mine(identity)}; "
        "a dead job's table may have been left over"
    )


def _matches(servers: list[Server], identity: Identity) -> Iterator[list[Server]]:
    """Yield the entries that each known fact selects, surest fact first."""
    if identity.pod_uid:
        yield [server for server in servers if server.server_id == identity.pod_uid]
    if identity.pod_ip:
        yield [server for server in servers if server.container_ip == identity.pod_ip]
    if identity.pod_name:
        yield [server for server in servers if server.pod_name == identity.pod_name]
    if identity.host_ip:
        yield [server for server in servers if identity.host_ip in {server.host_ip, server.server_id}]


def _is_other_pod(server: Server, identity: Identity) -> bool:
    """Return whether the entry contradicts a known fact about this pod.

    The next job's pod gets the same name and often the same host; its UID and, mostly, its IP are new.
    """
    pairs = [(server.container_ip, identity.pod_ip), (server.pod_name, identity.pod_name)]
    if POD_UID.fullmatch(server.server_id):
        pairs.append((server.server_id, identity.pod_uid))
    if server.pod_name:  # a group_list table: server_id is the host's address there
        pairs.append((server.server_id, identity.host_ip))
    return any(entry and fact and entry != fact for entry, fact in pairs)


def _by_position(table: RankTable, possible: list[Server], identity: Identity) -> Server:
    """Return the entry by its position: the table has no names, or this process knows nothing about itself."""
    if len(table.servers) == 1 and possible:
        return possible[0]
    if identity.node_rank is not None and identity.node_rank < len(table.servers):
        return table.servers[identity.node_rank]
    raise UsageError(
        f"cannot tell which of the table's {len(table.servers)} servers this is: "
        "set POD_UID, POD_IP or HOST_IP (or --node-rank)"
    )


def _mine(identity: Identity) -> str:
    return " ".join(f"{name}={quote_if_needed(value)}" for name, value in identity.names.items()) or "nothing"


def _theirs(table: RankTable) -> str:
    servers = ((server.pod_name, server.server_id, server.container_ip) for server in table.servers[:8])
    shown = ["/".join(dict.fromkeys(quote_if_needed(name) for name in names if name)) for names in servers]
    more = len(table.servers) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
