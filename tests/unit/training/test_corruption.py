"""Ranks whose states differ: which one is named, and by what."""

import pytest

from trainer.supervisor import blames_a_peer
from trainer.training.comparison import Comparison, Place, split_hashes
from trainer.training.corruption import NO_MAJORITY, Verdict, explain, find_wrong_ranks

PLACE = Place(epoch=1, step=20, averaged=False)


def _comparison(*hashes: int) -> Comparison:
    return Comparison(PLACE, hashes)


@pytest.mark.parametrize(
    ("now", "before", "expected"),
    [
        # Without an earlier dispute.
        ((5, 5), None, None),
        ((5, 5, 5), None, None),
        ((5, 5, 6), None, Verdict((2,), "majority", agreed=False)),
        ((6, 5, 7, 5, 5), None, Verdict((0, 2), "majority", agreed=False)),
        ((5, 6), None, Verdict((), NO_MAJORITY, agreed=False)),
        ((5, 5, 6, 6), None, Verdict((), NO_MAJORITY, agreed=False)),
        ((5, 6, 7), None, Verdict((), NO_MAJORITY, agreed=False)),
        # All agree after the same steps: the rank with another result than before was wrong.
        ((5, 5), (5, 6), Verdict((1,), "replay", agreed=True)),
        ((6, 6), (5, 6), Verdict((0,), "replay", agreed=True)),
        ((5, 5, 5, 5), (5, 5, 6, 6), Verdict((2, 3), "replay", agreed=True)),
        # They differ again: a rank that cannot repeat its result is wrong, a majority tells more.
        ((5, 7), (5, 6), Verdict((1,), "replay", agreed=False)),
        ((5, 5, 7), (5, 6, 7), Verdict((2,), "replay", agreed=False)),
        # Nothing tells: every rank has another result, or each repeats its own.
        ((7, 7), (5, 6), Verdict((), "not even a replay", agreed=True)),
        ((7, 8), (5, 6), Verdict((), "not even a replay", agreed=False)),
        ((5, 6), (5, 6), Verdict((), "not even a replay", agreed=False)),
    ],
)
def test_the_wrong_ranks_are_found(
    now: tuple[int, ...], before: tuple[int, ...] | None, expected: Verdict | None
) -> None:
    earlier = None if before is None else _comparison(*before)
    assert find_wrong_ranks(_comparison(*now), earlier) == expected


def test_only_the_rank_at_fault_gives_the_first_cause() -> None:
    verdict = Verdict((1,), "majority", agreed=False)
    owners = ["npu:0 on a", "npu:1 on b", "npu:2 on c"]
    reasons = [explain(verdict, PLACE, owners, own_rank=rank) for rank in range(3)]
    assert [blames_a_peer(reason.encode()) for reason in reasons] == [True, False, True]
    assert all("npu:1 on b" in reason and "epoch 1, step 20" in reason for reason in reasons)
    assert "rank 1" in reasons[0]


def test_an_unknown_rank_blames_no_peer() -> None:
    reason = explain(Verdict((), "not even a replay", agreed=False), PLACE, ["npu:0 on a", "npu:1 on b"], own_rank=0)
    assert not blames_a_peer(reason.encode())
    assert "--compare-every 0" in reason


def test_sums_over_ranks_are_split_by_place() -> None:
    later = Place(epoch=1, step=30, averaged=False)
    assert split_hashes([PLACE, later], [1, 2, 3, 4, 5, 6]) == (
        Comparison(PLACE, (1, 2, 3)),
        Comparison(later, (4, 5, 6)),
    )
    assert split_hashes([], []) == ()
