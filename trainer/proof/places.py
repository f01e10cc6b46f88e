"""Where checks run: on a node, on its devices, on pairs of them, and on all of them that collectives can connect."""

import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from trainer.proof.check import CheckPlace, Scope
from trainer.topology.visible import DeviceKind

_RING = 4
"""Devices next to each other with equal links: on an Atlas 800 the NPUs 0 to 3 and 4 to 7 are two rings, between which
HCCL connects no pair, or a slower one (HCCL's constraints)."""
_FIRST_GENERATION = re.compile(r"Ascend910(|A|B|ProA|ProB|PremiumA)")
"""The names of the Ascend 910 before the A2, whose names are 910B1 to 910B4 (torch_npu's SocVersion)."""


@dataclass(frozen=True)
class NodeDevices:
    """The devices of a node that take part."""

    kind: DeviceKind
    numbers: Sequence[int]
    """torch's."""
    node: int | None = None
    """This node's number in a job of several nodes."""
    ids: Mapping[int, int] = field(default_factory=dict)
    """The physical number of each device by torch's, where they are known."""
    model: str = ""
    """What the devices call themselves, once they have opened."""

    def id_of(self, number: int) -> int:
        """Return the physical number of a device."""
        return self.ids.get(number, number)

    def place(self, numbers: Sequence[int]) -> CheckPlace:
        """Return the place of some of the devices; its rank is left open."""
        return CheckPlace(self.kind, tuple(numbers), 0, 0, node=self.node)


def places_of(scope: Scope, devices: NodeDevices) -> list[list[CheckPlace]]:
    """Return the places of a scope: all places of an inner list are used at once, one list after the other.

    Pairs come in two pairings, so that a device that is slow with two different partners is the slow one. Both are of
    neighbours in a ring of four: links between rings are of another kind, and not to be compared with these. If HCCL
    does not connect all devices, the parts of them that it connects take the place of all.
    """
    if scope == "node":
        groups: list[list[Sequence[int]]] = [[()]]
    elif scope == "device":
        groups = [[(number,) for number in devices.numbers]]
    elif scope == "all" and obstacle_to_collectives(devices):
        groups = [_connected_parts(devices, shift) for shift in (0, 1)]
    elif scope == "all":
        groups = [[devices.numbers] if devices.numbers else []]
    else:
        groups = [[pair for ring in _rings(devices) for pair in _neighbours(ring, shift)] for shift in (0, 1)]
    return [[devices.place(group) for group in turn] for turn in groups if turn]


def obstacle_to(scope: Scope, devices: NodeDevices) -> str:
    """Return why a scope has no place, or `all` not the place of all devices; empty if it has."""
    if scope == "all" and devices.numbers:
        return obstacle_to_collectives(devices)
    if places_of(scope, devices):
        return ""
    count = 2 if scope == "pair" else 1
    return f"{count} of the devices must open{' in one ring' if count == 2 and _has_rings(devices.model) else ''}"


def obstacle_to_collectives(*nodes: NodeDevices) -> str:
    """Return why HCCL does not connect these devices of some nodes; empty if it does.

    Its constraints for the Ascend 910A: 1, 2, 4 or 8 NPUs of a server, the same number of each, and 2 or 4 in one ring.
    """
    groups = [[node.id_of(number) for number in node.numbers] for node in nodes]
    if not _has_rings(nodes[0].model) or (len(set(map(len, groups))) == 1 and all(map(_is_connected, groups))):
        return ""
    count = " and ".join(str(len(group)) for group in groups)
    return (
        f"with {nodes[0].model}, HCCL connects 1, 2, 4 or 8 NPUs of a server, the same number of each, 2 and 4 only "
        f"within NPU 0 to 3 or 4 to 7, and here are {count}: choose by --npus or ASCEND_RT_VISIBLE_DEVICES"
    )


def _is_connected(ids: Collection[int]) -> bool:
    rings = {number // _RING for number in ids}
    return len(ids) in (1, 2, 4, 8) and len(rings) == (2 if len(ids) == 2 * _RING else 1)


def _has_rings(model: str) -> bool:
    return _FIRST_GENERATION.fullmatch(model) is not None


def _rings(devices: NodeDevices) -> list[list[int]]:
    """Return the devices in the rings of their numbers.

    One without another in its ring joins the ring next to it, if that is possible.
    """
    rings: list[list[int]] = []
    # A user can make them visible in any order.
    numbers = sorted(devices.numbers, key=devices.id_of)
    for _, ring in itertools.groupby(numbers, key=lambda number: devices.id_of(number) // _RING):
        members = list(ring)
        if rings and 1 in (len(rings[-1]), len(members)) and not _has_rings(devices.model):
            rings[-1] += members
        else:
            rings.append(members)
    return rings


def _connected_parts(devices: NodeDevices, shift: int) -> list[Sequence[int]]:
    """Return the rings, and pairs of a ring of three in place of it; the shifted ones are these pairs only."""
    parts: list[Sequence[int]] = []
    for ring in _rings(devices):
        if len(ring) == _RING - 1:
            parts += _neighbours(ring, shift)
        elif len(ring) > 1 and not shift:
            parts.append(ring)
    return parts


def _neighbours(ring: Sequence[int], shift: int) -> list[tuple[int, int]]:
    """Return pairs of a ring that begin with another device; two devices are one pair only."""
    order = [] if shift and len(ring) < 3 else [*ring[shift:], *ring[:shift]]
    return list(zip(order[::2], order[1::2], strict=False))
