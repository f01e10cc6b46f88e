"""The places of checks: pairs of neighbours, and sets of devices that HCCL connects."""

from collections.abc import Sequence

import pytest

from trainer.proof.check import Scope
from trainer.proof.places import NodeDevices, obstacle_to, obstacle_to_collectives, places_of

A1, A2 = "Ascend910ProB", "Ascend910B1"


def _groups(scope: Scope, devices: NodeDevices) -> list[list[tuple[int, ...]]]:
    return [[place.devices for place in turn] for turn in places_of(scope, devices)]


@pytest.mark.parametrize(
    ("devices", "first", "second"),
    [
        (range(8), [(0, 1), (2, 3), (4, 5), (6, 7)], [(1, 2), (3, 0), (5, 6), (7, 4)]),
        (range(6), [(0, 1), (2, 3), (4, 5)], [(1, 2), (3, 0)]),
        ([0, 1, 3, 4, 5, 6, 7], [(0, 1), (4, 5), (6, 7)], [(1, 3), (5, 6), (7, 4)]),
        (range(5), [(0, 1), (2, 3)], [(1, 2), (3, 4)]),
        ([0, 4], [(0, 4)], []),
    ],
)
def test_each_device_meets_two_others_of_its_ring(
    devices: Sequence[int], first: list[tuple[int, int]], second: list[tuple[int, int]]
) -> None:
    pairings = _groups("pair", NodeDevices("npu", devices))
    assert pairings == [turn for turn in (first, second) if turn]


def test_a_pair_needs_two_devices() -> None:
    assert [len(places_of("pair", NodeDevices("npu", range(count)))) for count in (0, 1, 2, 3)] == [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("ids", "connected", "pairs"),
    [
        ([0], [[(0,)]], []),
        ([0, 1], [[(0, 1)]], [[(0, 1)]]),
        ([3, 4], [], []),
        ([0, 1, 2], [[(0, 1)], [(1, 2)]], [[(0, 1)], [(1, 2)]]),
        ([4, 5, 6, 7], [[(0, 1, 2, 3)]], [[(0, 1), (2, 3)], [(1, 2), (3, 0)]]),
        ([2, 3, 4, 5], [[(0, 1), (2, 3)]], [[(0, 1), (2, 3)]]),
        # By torch's numbers, of NPUs made visible in this order.
        ([0, 4, 1, 5], [[(0, 2), (1, 3)]], [[(0, 2), (1, 3)]]),
        (range(5), [[(0, 1, 2, 3)]], [[(0, 1), (2, 3)], [(1, 2), (3, 0)]]),
        (range(6), [[(0, 1, 2, 3), (4, 5)]], [[(0, 1), (2, 3), (4, 5)], [(1, 2), (3, 0)]]),
        (range(7), [[(0, 1, 2, 3), (4, 5)], [(5, 6)]], [[(0, 1), (2, 3), (4, 5)], [(1, 2), (3, 0), (5, 6)]]),
        (range(8), [[tuple(range(8))]], [[(0, 1), (2, 3), (4, 5), (6, 7)], [(1, 2), (3, 0), (5, 6), (7, 4)]]),
    ],
)
def test_an_ascend_910a_is_asked_only_for_what_hccl_connects(
    ids: Sequence[int], connected: list[list[tuple[int, ...]]], pairs: list[list[tuple[int, int]]]
) -> None:
    devices = NodeDevices("npu", range(len(ids)), ids=dict(enumerate(ids)), model=A1)
    assert _groups("all", devices) == connected
    assert (obstacle_to("all", devices) == "") == (connected == [[tuple(range(len(ids)))]])
    assert _groups("pair", devices) == pairs
    assert (obstacle_to("pair", devices) == "") == (pairs != [])
    assert pairs or "must open in one ring" in obstacle_to("pair", devices)
    later = NodeDevices("npu", devices.numbers, ids=devices.ids, model=A2)
    assert _groups("all", later) == [[tuple(range(len(ids)))]]


@pytest.mark.parametrize(("counts", "connected"), [((8, 8), True), ((4, 4), True), ((8, 4), False), ((3, 3), False)])
def test_servers_give_the_same_number_of_npus_to_hccl(counts: tuple[int, ...], connected: bool) -> None:
    reason = obstacle_to_collectives(*(NodeDevices("npu", range(count), model=A1) for count in counts))
    assert (reason == "") == connected
    assert connected or f"here are {counts[0]} and {counts[1]}: choose" in reason
    assert not obstacle_to_collectives(*(NodeDevices("npu", range(count), model=A2) for count in counts))
