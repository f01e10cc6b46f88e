"""Rank tables as they were recorded, made ready to be played to pods that are not the recorded ones.

A history is what a ConfigMap held, and when. Its pods come in two waves: those of the beginning and, where the table
was begun anew after it was completed, those that replaced them. The bed's nodes have the recorded ones' addresses.
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
    """A recorded pod, to be played.

    Attributes:
        ip: recorded; of a `group_list` table's pod, which has none, its name.
        uid: recorded, where the table has it.
        node: on which it was: 1 or 2.
        chips: by position.
        ranks: none where it is never told any.
        reason: why it never gets its place, as the last thing that it says; empty where it does.
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
class Step:
    """What the ConfigMap is given, `at_s` after its Job was made or its second wave began; None: it is deleted."""

    at_s: float
    data: Mapping[str, str] | None
    new: bool
    wave: int


@dataclass
class History:
    """One recording."""

    case: str
    steps: list[Step] = field(default_factory=list)
    roles: dict[str, Role] = field(default_factory=dict)


def histories() -> list[History]:
    """Every recorded history of a ConfigMap."""
    found = []
    for path in sorted(TABLES.glob("*.json")):
        recorded = json.loads(path.read_text())
        if recorded.get("configmap_history"):
            found.append(_history(path.stem, recorded))
    return found


def _history(case: str, recorded: Mapping[str, Any]) -> History:
    history = History(case)
    if recorded["configmap_history"][0]["event"] != "ADDED":
        history.steps.append(Step(0, {}, new=True, wave=0))  # it was there, with nothing in it
    wave, began, completed = 0, 0.0, False
    outcomes = iter(EXPECTED[case])
    for entry in recorded["configmap_history"]:
        text = entry["data"].get("hccl.json", "")
        outcome = next(outcomes) if text else ""
        deleted = entry["event"] == "DELETED"
        if completed and not wave and (deleted or json.loads(text)["status"] != "completed"):
            wave, began = 1, entry["t"]
        data = None if deleted else entry["data"]
        history.steps.append(Step(entry["t"] - began, data, new=entry["event"] == "ADDED", wave=wave))
        if not deleted and json.loads(text)["status"] == "completed":
            completed = True
            for role in _named(json.loads(text), wave, outcome):
                known = history.roles.get(role.ip)
                # A pod that lives on reads no second table; one of the same name is another.
                if known is None or (not PODS.fullmatch(role.ip) and known.wave < wave):
                    history.roles[role.ip if known is None else f"{role.ip} anew"] = role
    _add_unnamed(history, recorded, completed=completed)
    return history


def _named(table: Mapping[str, Any], wave: int, outcome: str) -> list[Role]:
    """The pods of a completed table; where the reader is to refuse it, all of them say why."""
    if "group_list" in table:
        return _of_group(table, wave, outcome)
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
            world_size=sum(len(one["device"]) for one in servers),
            node_rank=sorted(firsts).index(firsts[i]),
            master="127.0.0.1" if len(servers) == 1 else servers[firsts.index(min(firsts))]["container_ip"],
            reason=_reason(outcome),
        )
        for i, server in enumerate(servers)
    ]


def _of_group(table: Mapping[str, Any], wave: int, outcome: str) -> list[Role]:
    """In the order of the pods' names; nodes have the addresses 10.123.0.1 and .2."""
    instances = sorted(table["group_list"][0]["instance_list"], key=lambda one: str(one["pod_name"]))
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
                world_size=sum(len(one["devices"]) for one in instances),
                node_rank=len(roles),
                master="127.0.0.1" if len(instances) == 1 else instances[0]["server_id"],
                reason=_reason(outcome),
            )
        )
        rank += len(chips)
    return roles


def _add_unnamed(history: History, recorded: Mapping[str, Any], *, completed: bool) -> None:
    """Pods that were there, and in no completed table."""
    for pod in recorded["pods"]:
        by_name = any(role.pod_name == pod["name"] for role in history.roles.values())
        if pod["podIP"] in history.roles or by_name:
            continue
        last = history.steps[-1].data or {}
        over = json.loads(last.get("hccl.json", '{"status": "none"}'))["status"] == "completed"
        reason = "the table does not contain this pod" if over else 'status is "initializing"'
        chips = tuple(range(8))
        history.roles[pod["podIP"]] = Role(
            pod["podIP"], pod["uid"], pod["name"], _node(pod["podIP"]), int(completed), chips, reason=reason
        )


def _reason(outcome: str) -> str:
    """Why a table is refused, by the page that says what is to be made of each."""
    return outcome.removeprefix("refused: ") if outcome.startswith("refused: ") else ""


def _node(pod_ip: str) -> int:
    found = PODS.fullmatch(pod_ip)
    assert found is not None
    return int(found[1]) + 1
