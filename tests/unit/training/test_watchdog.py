"""A rank that has waited too long names the ranks to blame; an unstarted watchdog does nothing."""

import subprocess
import sys
from unittest import mock

import pytest

from trainer.distributed.activity import (
    BETWEEN,
    MISSED_REPORTS,
    Activity,
    Peer,
    decode_report,
    encode_report,
    stall_line,
)
from trainer.distributed.compilation import CompilerClock
from trainer.distributed.watchdog import Watchdog
from trainer.supervisor import blames_a_peer

MINE = Activity("gradient exchange", {"epoch": 4, "step": 17})
DATA = Activity("data", {"epoch": 4, "step": 17})


def same_place() -> Activity:
    return Activity(MINE.name, MINE.position)


@pytest.mark.parametrize(
    ("peers", "blame"),
    [
        (
            [Peer(0, same_place(), 900), Peer(1, DATA, waited_s=905)],
            "rank 1 (data at epoch 4 step 17) has not moved for 905 s; look",
        ),
        (
            [Peer(0, DATA, 900), Peer(1, same_place(), waited_s=3, silent_s=890.4, silent=True)],
            "rank 1 (gradient exchange at epoch 4 step 17) has been silent for 890 s; look",
        ),
        ([Peer(0, same_place(), 900), Peer(1, None)], "rank 1 has never been heard of; look"),
        (
            [Peer(0, same_place(), 900), Peer(1, Activity("the checkpoint", MINE.position), 904)],
            "rank 1 (the checkpoint at epoch 4 step 17) has not moved for 904 s; look",
        ),
        (
            [Peer(rank, DATA, waited_s=rank) for rank in range(1, 9)],
            "rank 8 (data at epoch 4 step 17) has not moved for 8 s, rank 7 (data at epoch 4 step 17) has not moved "
            "for 7 s, rank 6 (data at epoch 4 step 17) has not moved for 6 s and 5 more; look",
        ),
        ([Peer(0, same_place(), 900)], "all ranks wait for each other; check the network"),
    ],
)
def test_a_rank_names_the_ranks_to_blame_and_calls_itself_a_consequence(peers: list[Peer], blame: str) -> None:
    line = stall_line(MINE, tag="rank 3 npu:3", waited_s=930.2, peers=peers)
    beginning = "error rank 3 npu:3 has waited 930 s for its peers (gradient exchange at epoch 4 step 17): "
    assert line.startswith(beginning + blame)
    assert "\n" not in line
    assert len(line) <= 500, "the supervisor cuts a longer one"
    assert blames_a_peer(line.encode())


@pytest.mark.parametrize("what", ["data", "compute", "disk", "the device"])
def test_a_wait_without_peers_is_the_ranks_own_failure(what: str) -> None:
    line = stall_line(Activity(what, {"epoch": 4, "step": 17}), tag="rank 3 npu:3", waited_s=900, peers=None)
    assert line.startswith(f"error rank 3 npu:3 has waited 900 s for {what} at epoch 4 step 17: ")
    assert line.endswith("or allow more with --stall-timeout-s")
    assert not blames_a_peer(line.encode())


def test_the_readers_clock_decides_whether_a_rank_is_silent() -> None:
    text = encode_report(DATA, waited_s=7, now=1000)
    early = decode_report(1, text, unchanged_s=4, overdue_s=15, now=5000)
    assert (early.silent, str(early.activity), early.waited_s) == (False, str(DATA), 7)
    late = decode_report(1, text, unchanged_s=16, overdue_s=15, now=0)
    assert (late.silent, late.silent_s) == (True, 16)


@pytest.mark.parametrize("timeout_s", [1, 5, 15, 20, 40, 900])
def test_a_peer_counts_as_silent_before_the_limit_ends(timeout_s: float) -> None:
    with mock.patch("trainer.distributed.watchdog.ActivityBoard") as board:
        Watchdog(rank=0, device="cpu:0", world_size=2, timeout_s=timeout_s, store_address=("127.0.0.1", 1))
    # The first report that a rank reads can be one interval old already.
    assert (MISSED_REPORTS + 1) * board.call_args.kwargs["every_s"] <= timeout_s / 2


def test_a_rank_between_activities_counts_as_busy() -> None:
    peer = decode_report(1, encode_report(Activity(BETWEEN), waited_s=70, now=0), unchanged_s=0, overdue_s=15, now=0)
    line = stall_line(MINE, tag="rank 3 npu:3", waited_s=930, peers=[peer])
    assert "rank 1 (work between steps) has not moved for 70 s" in line


def test_an_unstarted_watchdog_never_ends_the_process() -> None:
    watchdog = Watchdog(rank=0, device="cpu:0", world_size=2, timeout_s=0.001, store_address=("127.0.0.1", 1))
    watchdog.at("compute", epoch=0, step=0)
    with pytest.raises(KeyError), watchdog.waiting("data", epoch=0, step=0):
        raise KeyError
    watchdog.stop()


def test_short_compilers_one_after_the_other_are_movement() -> None:
    clock = CompilerClock()
    busy = "import time; any(time.process_time() > 0.1 for _ in iter(int, 1))"
    moved = []
    for _ in range(4):
        subprocess.run([sys.executable, "-S", "-c", busy], check=True)
        moved.append(clock.moved(0.15))
    assert any(moved), "four compilers, each of which has used less than 0.15 s"
    assert not clock.moved(60.0)
