"""Ranks whose states differ: which one is named, by what, and when the run goes back or ends."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from tests.unit.training.test_comparison import comparing_training
from trainer.distributed.state_hash import hash_state
from trainer.distributed.stop_requests import Request
from trainer.shared.errors import RESUMABLE, NoRetryError
from trainer.supervisor import blames_a_peer
from trainer.training import comparison, corruption, modes
from trainer.training.checkpoints import CheckpointManager
from trainer.training.comparison import Comparison, Place, split_hashes
from trainer.training.corruption import (
    NO_MAJORITY,
    CorruptionError,
    Verdict,
    check_agreement,
    explain,
    find_wrong_ranks,
)
from trainer.training.progress import TrainingProgress
from trainer.training.steps import BadStep, StepWindow

PLACE = Place(epoch=1, step=20, averaged=False)


def _comparison(*hashes: int) -> Comparison:
    return Comparison(PLACE, hashes)


class Ranks:
    """A training whose peers are only in the comparisons that a test gives it; `lines` are its records."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, ranks: int, **settings: Any) -> None:
        self.training = comparing_training(ranks=ranks, **settings)
        self.lines: list[dict[str, Any]] = []
        self._records = mock.Mock(write_corruption=self.lines.append)
        monkeypatch.setattr(corruption, "all_gather_object", lambda value, _group: [value] * ranks)

    def check(self, *hashes: int) -> str:
        """Return what the run does after a comparison."""
        self.training.comparison.discard()
        try:
            check_agreement(self.training, self._records, _comparison(*hashes))
        except CorruptionError as error:
            return "roll back" if error.recoverable else "leave the pod"
        except NoRetryError:
            return "stop"
        return "continue"


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


@pytest.mark.parametrize(
    ("differences", "ranks"),
    [
        (((1, 17), (1, 18)), (0,)),
        (((2, 0), (1, 18)), (1,)),
        ((None, (1, 18)), (1,)),
        # Both at once: it began before, and spread.
        (((1, 18), (1, 18)), ()),
        ((None, None), ()),
    ],
)
def test_the_rank_whose_results_differ_first_was_wrong(
    differences: tuple[tuple[int, int] | None, ...], ranks: tuple[int, ...]
) -> None:
    """Both ranks end in another state than before, since a wrong state spreads with the next gradients."""
    verdict = find_wrong_ranks(_comparison(7, 7), _comparison(5, 6), differences)
    assert verdict is not None
    assert verdict.ranks == ranks


WRONG = {0: (6, 5, 5), 1: (5, 6, 5), 2: (5, 5, 6)}


@pytest.mark.parametrize(
    ("wrong", "actions"),
    [
        ([1, None, 2, 0], ["roll back", "continue", "roll back", "roll back"]),
        ([1, 2, 1], ["roll back", "roll back", "leave the pod"]),
        ([1, 1], ["roll back", "leave the pod"]),
    ],
)
def test_a_rank_that_is_wrong_again_leaves_the_pod(
    monkeypatch: pytest.MonkeyPatch, wrong: list[int | None], actions: list[str]
) -> None:
    ranks = Ranks(monkeypatch, ranks=3)
    assert [ranks.check(*((5, 5, 5) if rank is None else WRONG[rank])) for rank in wrong] == actions
    assert [line["rank"] for line in ranks.lines] == [str(rank) for rank in wrong if rank is not None]


def test_corruptions_of_different_ranks_do_not_go_on_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(monkeypatch, ranks=5)
    hashes = [tuple(6 if rank == wrong else 5 for rank in range(5)) for wrong in range(4)]
    assert [ranks.check(*row) for row in hashes] == ["roll back"] * 3 + ["leave the pod"]


def test_two_ranks_repeat_the_steps_before_either_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(monkeypatch, ranks=2)
    assert [ranks.check(5, 6), ranks.check(5, 5)] == ["roll back", "continue"]
    assert [(line["rank"], line["told_by"]) for line in ranks.lines] == [("unknown", NO_MAJORITY), ("1", "replay")]
    assert [ranks.check(5, 6), ranks.check(5, 7)] == ["roll back", "leave the pod"]


def test_the_run_stops_on_request_after_the_replay_of_two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    two, three = (Ranks(monkeypatch, ranks=count, on_corruption="stop") for count in (2, 3))
    assert three.check(5, 6, 5) == "stop"
    monkeypatch.setattr(corruption, "all_gather_object", lambda value, _group: [value] * 2)
    assert [two.check(5, 6), two.check(6, 6)] == ["roll back", "stop"]


def test_a_run_that_is_asked_to_stop_ends_in_time_without_saving_a_corrupt_state(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = mock.Mock()
    run.checkpoints.save.side_effect = CorruptionError("the ranks' states differ", recoverable=True)
    run.checkpoints.finish.return_value = None
    assert modes._stop(run) == RESUMABLE
    assert "the state at the stop is not saved" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["save", "snapshot"])
def test_a_state_on_which_the_ranks_disagree_is_neither_saved_nor_kept_in_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    """After a crash all ranks would continue from rank 0's state, and no comparison could find it any more."""
    training = comparing_training(ranks=2, mode="performance")
    lease = mock.Mock(spec=["prove"])
    manager = CheckpointManager(training, tmp_path, attempt=1, data={}, classes=[], lease=lease)
    monkeypatch.setattr(comparison, "sum_over_ranks", lambda hashes: hashes + torch.tensor([5, 0]))
    with pytest.raises(CorruptionError, match="states differ at epoch 0, step 0"):
        getattr(manager, kind)(training, TrainingProgress(), mock.Mock(is_written=True))


def test_ranks_are_compared_before_a_run_counts_as_diverged(monkeypatch: pytest.MonkeyPatch) -> None:
    """One corrupt weight can make every loss infinite: then no lower learning rate helps."""
    bad = BadStep(own_loss=True, samples=(3,))
    window = StepWindow(0, (1.0, 1.0), (0.1, 0.1), 8, 0, 1.0, timed=True, bad=(bad, bad), request=Request.NONE)
    training = comparing_training(ranks=2, max_bad_steps=2)
    run = mock.Mock(training=training)
    for other_rank, error in ((0, modes.DivergedError), (5, CorruptionError)):
        run.progress = TrainingProgress()
        own = hash_state(list(training.comparison._tensors(averaged=False)))
        peers = {0: own, 5: own + 5}[other_rank]
        monkeypatch.setattr(comparison, "sum_over_ranks", lambda hashes, peers=peers: hashes + peers * (hashes == 0))
        with pytest.raises(error):
            modes._check_steps(run, window, epoch=0)
