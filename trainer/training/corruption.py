"""The run's reaction to ranks whose states differ: name the rank, go back to an agreed checkpoint, or end.

All ranks have the same hashes, so that each comes to the same decision by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer.distributed.process_group import all_gather_object
from trainer.records.run_records import Records, say
from trainer.shared.container import node_name
from trainer.shared.errors import NoRetryError, TrainerError
from trainer.supervisor import A_PEER_DIFFERS
from trainer.training.comparison import Comparison, Place
from trainer.training.steps import PEERS, Training

NO_MAJORITY = "no majority"
MOST_ROLL_BACKS = 3
"""Roll-backs for corruption in one attempt. A rank that was wrong before ends the attempt the next time."""


Difference = tuple[int, int] | None
"""Epoch and step of a result that differs from an earlier one; None if there is no such result."""


class CorruptionError(TrainerError):
    """The ranks' states differ; every rank raises it at the same place.

    The device may be at fault, so the exit code lets the platform start the run again on another one.
    """

    def __init__(self, message: str, *, recoverable: bool) -> None:
        """`recoverable`: the run can go back and continue in this process."""
        super().__init__(message)
        self.recoverable = recoverable


@dataclass(frozen=True)
class Verdict:
    """What a comparison says, when something is or was wrong.

    Attributes:
        ranks: the ranks that are, or were, wrong; empty if that is not known.
        told_by: what tells it.
        agreed: all ranks have the same state now.
    """

    ranks: tuple[int, ...]
    told_by: str
    agreed: bool


def find_wrong_ranks(
    now: Comparison, before: Comparison | None, differences: Sequence[Difference] = ()
) -> Verdict | None:
    """Return the verdict; None if nothing is wrong.

    Args:
        before: the comparison without a majority at the same place, after which the run repeated the same steps.
        differences: for each rank, the first repeated step whose result was another one than before.
    """
    if before is None:
        if now.agreed:
            return None
        ranks = now.differing()
        return Verdict(ranks, "majority" if ranks else NO_MAJORITY, agreed=False)
    ranks = now.differing() or _first_to_differ(differences) or now.differing_from(before)
    # If all ranks differ from before at the same step, it is not known where that began.
    ranks = ranks if len(ranks) < len(now.hashes) else ()
    return Verdict(ranks, "replay" if ranks else "not even a replay", agreed=now.agreed)


def _first_to_differ(differences: Sequence[Difference]) -> tuple[int, ...]:
    earliest = min((difference for difference in differences if difference is not None), default=None)
    if earliest is None:
        return ()
    return tuple(rank for rank, difference in enumerate(differences) if difference == earliest)


def check_agreement(training: Training, records: Records, now: Comparison | None) -> None:
    """Do nothing if all ranks have the same state; else name the rank that differs.

    Raises:
        CorruptionError: the states differ, or the device that was wrong must be left.
        NoRetryError: the same, and `--on-corruption stop` ends the run.
    """
    if now is None:
        return
    comparison = training.comparison
    disputed = comparison.disputed
    before = disputed if disputed is not None and disputed.place == now.place else None
    differences: list[Difference] = []
    if before is not None:
        with training.watchdog.waiting(PEERS):
            differences = all_gather_object(comparison.first_difference, training.group)
    verdict = find_wrong_ranks(now, before, differences)
    if verdict is None:
        return
    comparison.disputed = now if before is None and not verdict.ranks else None
    with training.watchdog.waiting(PEERS):
        owners = all_gather_object(f"{training.device} on {node_name()}", training.group)
    repeated = any(rank in earlier for earlier in comparison.wrong_ranks for rank in verdict.ranks)
    comparison.wrong_ranks.append(verdict.ranks)
    if not verdict.agreed:
        comparison.roll_backs += 1
    ended = repeated or comparison.roll_backs > MOST_ROLL_BACKS or (before is not None and not verdict.agreed)
    stop = training.config.on_corruption == "stop" and comparison.disputed is None
    action = "end" if ended or stop else "continue" if verdict.agreed else "roll back"
    figures = describe_verdict(verdict, now.place, owners, action=action)
    records.write_corruption(figures)
    if training.rank in {0, *verdict.ranks}:
        say("corruption", **figures)
    reason = explain(verdict, now.place, owners, own_rank=training.rank)
    if stop:
        raise NoRetryError(f"{reason}; --on-corruption stop ends the run")
    if ended or not verdict.agreed:
        raise CorruptionError(reason, recoverable=not ended)


def describe_verdict(verdict: Verdict, place: Place, owners: list[str], *, action: str) -> dict[str, Any]:
    """Return the values of the line about a corruption."""
    return {
        "rank": ",".join(map(str, verdict.ranks)) or "unknown",
        "device": ", ".join(owners[rank] for rank in verdict.ranks) or None,
        "epoch": place.epoch,
        "step": place.step,
        "ranks": len(owners),
        "told_by": verdict.told_by,
        "action": action,
    }


def explain(verdict: Verdict, place: Place, owners: list[str], *, own_rank: int) -> str:
    """Return the reason for an end, in the words of `own_rank`: peers of the rank at fault only name it."""
    if own_rank in verdict.ranks:
        return (
            f"the device failed (silent corruption): the state of {owners[own_rank]} was not the other ranks' at "
            f"{place}, as the {verdict.told_by} shows: test it, and take it or its node out"
        )
    if verdict.ranks:
        wrong = ", ".join(f"rank {rank} ({owners[rank]})" for rank in verdict.ranks)
        return f"{A_PEER_DIFFERS}: {wrong} at {place}, as the {verdict.told_by} shows"
    reason = f"the ranks' states differ at {place}, and {verdict.told_by} tells which rank is wrong"
    if verdict.told_by == NO_MAJORITY:
        return reason
    return (
        f"{reason}: look for a rank that fails again; if the devices are healthy, repeated steps do not give the same "
        "bits on them, and --compare-every 0 turns the comparison off"
    )
