"""Recorded rank tables, prepared for a replay to pods that are not the recorded ones.

A history is the sequence of contents of one ConfigMap, with their times. Its pods come in two waves: the first pods
and, where the table was started again after its completion, the pods that replaced them. The test bed's nodes have the
addresses of the recorded nodes.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.unit.ranktable.test_ranktable_recorded import EXPECTED
from trainer.ranktable.identity import POD_UID

TABLES = Path(__file__).parents[2] / "data" / "ranktables"
PODS = re.compile(r"10\.244\.([01])\.\d+")


@dataclass(frozen=True)
class Role:
    """A recorded pod whose part a pod of the test bed takes.

    Attributes:
        ip: the recorded address; for a pod of a `group_list` table, which has no address, its name.
        uid: the recorded UID, where the table has it.
        node: the pod's node: 1 or 2.
        chips: by position.
        ranks: empty if the pod never gets ranks.
        reason: why the pod never gets its place, as its last output says; empty if it gets one.
    """

    ip: str
    uid: str
    pod_name: str
    node: int
    wave: int
    chips: tuple[int, ...]
    ranks: tuple[int, ...] = ()
    world_size: int = 0
    node_rank: int = 0
    master: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Change:
    """A content of the ConfigMap, `at_s` after the start of its Job or of its second wave; None: it is deleted."""

    at_s: float
    data: Mapping[str, str] | None
    is_creation: bool
    wave: int


@dataclass
class History:
    """One recording."""

    case: str
    changes: list[Change] = field(default_factory=list)
    roles: dict[str, Role] = field(default_factory=dict)


def histories() -> list[History]:
    """Return every recorded history of a ConfigMap."""
    collected = []
    for path in sorted(TABLES.glob("*.json")):
        recording = json.loads(path.read_text())
        if recording.get("configmap_history"):
            collected.append(_history(path.stem, recording))
    return collected


def _history(case: str, recorded: Mapping[str, Any]) -> History:
    history = History(case)
    if recorded["configmap_history"][0]["event"] != "ADDED":
        history.changes.append(Change(0, {}, is_creation=True, wave=0))  # the ConfigMap existed, with no data
    wave, began, completed = 0, 0.0, False
    outcomes = iter(EXPECTED[case])
    for entry in recorded["configmap_history"]:
        text = entry["data"].get("hccl.json", "")
        outcome = next(outcomes) if text else ""
        deleted = entry["event"] == "DELETED"
        if completed and not wave and (deleted or json.loads(text)["status"] != "completed"):
            wave, began = 1, entry["t"]
        data = None if deleted else entry["data"]
        history.changes.append(Change(entry["t"] - began, data, is_creation=entry["event"] == "ADDED", wave=wave))
        if not deleted and json.loads(text)["status"] == "completed":
            completed = True
            for role in _named_pods(json.loads(text), wave, outcome):
                earlier = history.roles.get(role.ip)
                # A pod that lives on reads no second table; a pod of the same name is a new pod.
                if earlier is None or (not PODS.fullmatch(role.ip) and earlier.wave < wave):
                    history.roles[role.ip if earlier is None else f"{role.ip} again"] = role
    _add_unnamed(history, recorded, completed=completed)
    return history


def _named_pods(table: Mapping[str, Any], wave: int, outcome: str) -> list[Role]:
    """Return the pods of a completed table; if the reader must refuse the table, each pod gets the reason."""
    if "group_list" in table:
        return _from_group(table, wave, outcome)
    servers = [server for server in table["server_list"] if PODS.fullmatch(server.get("container_ip", ""))]
    firsts = [int(server["device"][0]["rank_id"]) for server in servers]
    return [
        Role(
            ip=server["container_ip"],
            uid=server["server_id"] if POD_UID.fullmatch(server["server_id"]) else "",
            pod_name="",
            node=_node(server["container_ip"]),
            wave=wave,
            chips=tuple(int(device["device_id"]) for device in server["device"]),
            ranks=tuple(int(device["rank_id"]) for device in server["device"]),
            world_size=sum(len(server["device"]) for server in servers),
            node_rank=sorted(firsts).index(firsts[i]),
            master="127.0.0.1" if len(servers) == 1 else servers[firsts.index(min(firsts))]["container_ip"],
            reason=_reason(outcome),
        )
        for i, server in enumerate(servers)
    ]


def _from_group(table: Mapping[str, Any], wave: int, outcome: str) -> list[Role]:
    """Return the pods in the order of their names; the nodes have the addresses 10.123.0.1 and .2."""
    instances = sorted(table["group_list"][0]["instance_list"], key=lambda instance: str(instance["pod_name"]))
    roles: list[Role] = []
    rank = 0
    for instance in instances:
        chips = tuple(int(device["device_id"]) for device in instance["devices"])
        roles.append(
            Role(
                ip=instance["pod_name"],
                uid="",
                pod_name=instance["pod_name"],
                node=int(instance["server_id"].rpartition(".")[2]),
                wave=wave,
                chips=chips,
                ranks=tuple(range(rank, rank + len(chips))),
                world_size=sum(len(pod["devices"]) for pod in instances),
                node_rank=len(roles),
                master="127.0.0.1" if len(instances) == 1 else instances[0]["server_id"],
                reason=_reason(outcome),
            )
        )
        rank += len(chips)
    return roles


def _add_unnamed(history: History, recorded: Mapping[str, Any], *, completed: bool) -> None:
    """Add the pods that ran, but are in no completed table."""
    for pod in recorded["pods"]:
        by_name = any(role.pod_name == pod["name"] for role in history.roles.values())
        if pod["podIP"] in history.roles or by_name:
            continue
        data = history.changes[-1].data or {}
        is_complete = json.loads(data.get("hccl.json", '{"status": "none"}'))["status"] == "completed"
        reason = "the table does not contain this pod" if is_complete else 'status is "initializing"'
        chips = tuple(range(8))
        history.roles[pod["podIP"]] = Role(
            pod["podIP"], pod["uid"], pod["name"], _node(pod["podIP"]), int(completed), chips, reason=reason
        )


def _reason(outcome: str) -> str:
    """Return the reason why a table is refused, by EXPECTED; empty if it is not."""
    return outcome.removeprefix("refused: ") if outcome.startswith("refused: ") else ""


def _node(pod_ip: str) -> int:
    match = PODS.fullmatch(pod_ip)
    assert match is not None
    return int(match[1]) + 1
