"""Silent corruption: all ranks compare a hash of their state, and the rank that differs is named.

After a step all ranks hold the same bits: weights, their average, what the optimizer keeps of them, and the batch
statistics from the moment when they were averaged until the next step. A rank with other bits has computed or
remembered something wrong. The hash travels with a reduction that the ranks do anyway, and is read when it is.

A majority names the rank. Two ranks cannot have one: they go back and repeat the steps. A wrong state spreads to the
other rank with the next gradients, so each of the two also remembers a hash of its logits of each step. The rank whose
logits are the first to differ from the ones before, or only whose state is another one at the end, had been wrong.

One rank cannot compare. If a gradient is wrong before the ranks exchange it, all have the same wrong state.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.distributed.batch_norm import BatchStatistics
from trainer.distributed.process_group import sum_over_ranks
from trainer.distributed.state_hash import hash_state
from trainer.model.pnasnet import PNASNet5
from trainer.training.ema import Ema

PAIR = 2
"""Ranks that can have no majority."""


@dataclass(frozen=True)
class Place:
    """A place in the run, at which the same steps give the same state.

    Attributes:
        epoch: counted from 0.
        step: steps done in the epoch.
        averaged: the batch statistics are the same on all ranks, and are compared too.
    """

    epoch: int
    step: int
    averaged: bool

    def __str__(self) -> str:
        """`epoch 4, step 17`."""
        return f"epoch {self.epoch}, step {self.step}"


@dataclass(frozen=True)
class Comparison:
    """The hash of each rank's state at a place, in the order of ranks."""

    place: Place
    hashes: tuple[int, ...]

    @property
    def agreed(self) -> bool:
        """Whether all ranks have the same state."""
        return len(set(self.hashes)) == 1

    def differing(self) -> tuple[int, ...]:
        """Return the ranks that differ from more than half of all; empty if there is no such majority."""
        ((common, count),) = Counter(self.hashes).most_common(1)
        if 2 * count <= len(self.hashes):
            return ()
        return tuple(rank for rank, value in enumerate(self.hashes) if value != common)

    def differing_from(self, other: "Comparison") -> tuple[int, ...]:
        """Return the ranks with another hash than in `other`, a comparison after the same steps."""
        pairs = zip(self.hashes, other.hashes, strict=True)
        return tuple(rank for rank, (one, two) in enumerate(pairs) if one != two)


class StateComparison:
    """This rank's hashes. Every rank takes them after the same steps.

    With one rank, or if `every` is 0, no hash is taken.
    """

    def __init__(
        self,
        network: PNASNet5,
        optimizer: torch.optim.Optimizer,
        ema: Ema | None,
        statistics: BatchStatistics,
        *,
        every: int,
        rank: int,
        world_size: int,
    ) -> None:
        """Compare every `every` steps of an epoch; 0 is off."""
        self._network, self._optimizer, self._ema, self._statistics = network, optimizer, ema, statistics
        self.ranks = world_size if every and world_size > 1 else 0
        """The number of ranks that compare; 0 if they do not."""
        self._every = every
        self._own = torch.zeros(world_size, dtype=torch.int64)
        self._own[rank] = 1
        self._own = self._own.to(statistics.flat.device)
        self._pending: list[tuple[Place, Tensor]] = []
        self.disputed: Comparison | None = None
        """A comparison without a majority, until the run reaches its place again."""
        self.keeps_results = self.ranks == PAIR
        """Whether this rank remembers its results, since no majority can tell which rank is wrong."""
        self._results: dict[tuple[int, int], int] = {}
        self.first_difference: tuple[int, int] | None = None
        """The first repeated step whose result was not this rank's earlier one: its epoch and step."""
        self.wrong_ranks: list[tuple[int, ...]] = []
        """The ranks at fault in each corruption of this attempt; empty where that is not known."""
        self.roll_backs = 0
        """Times that the states of this attempt's ranks differed."""

    def after_step(self, *, epoch: int, step: int) -> None:
        """Take the hash after `step` steps of an epoch, if one is due; the host does not wait for the device."""
        place = Place(epoch, step, averaged=False)
        if self.ranks and (step % self._every == 0 or (self.disputed is not None and self.disputed.place == place)):
            self._pending.append((place, self._hashes(place)))

    def take_pending(self) -> tuple[list[Place], list[Tensor]]:
        """Return the hashes since the last call: for each place int64 (W,), to be added up over W ranks."""
        pending, self._pending = self._pending, []
        return [place for place, _ in pending], [hashes for _, hashes in pending]

    def compare_now(self, place: Place) -> Comparison | None:
        """Compare the state as it is, at `place`, and wait for the result; None if the ranks do not compare."""
        if not self.ranks:
            return None
        return Comparison(place, tuple(sum_over_ranks(self._hashes(place)).tolist()))

    def discard(self) -> None:
        """Forget hashes of steps that the run takes back; it may repeat them to find a wrong rank."""
        self._pending.clear()
        self.first_difference = None

    def add_results(self, results: Sequence[int], *, epoch: int, first_step: int) -> None:
        """Remember this rank's result of each step; in repeated steps compare with the one before.

        Args:
            results: a hash of the logits of each step from `first_step` on.
        """
        for step, result in enumerate(results, first_step):
            earlier = self._results.get((epoch, step), result)
            if self.disputed is not None and self.first_difference is None and earlier != result:
                self.first_difference = (epoch, step)
            self._results[epoch, step] = result

    def forget_results(self, before: Place) -> None:
        """Forget the results before a checkpoint: no run will repeat these steps."""
        first = (before.epoch, before.step)
        self._results = {position: result for position, result in self._results.items() if position >= first}

    def _hashes(self, place: Place) -> Tensor:
        """Return int64 (W,): this rank's hash in its own place, and zeros."""
        return hash_state(list(self._tensors(averaged=place.averaged))) * self._own

    def _tensors(self, *, averaged: bool) -> Iterator[Tensor]:
        """Yield what must be the same on all ranks.

        The average's copy of the batch statistics is as old as the last evaluation and is compared only after it.
        """
        parameters = list(self._network.parameters())
        yield from parameters
        seen = set(map(id, parameters))
        for group in self._optimizer.param_groups:
            for used in group["params"]:
                if id(used) not in seen:  # a master weight
                    yield used
                yield from _tensors_of(self._optimizer.state.get(used, {}))
        if self._ema is not None:
            yield from self._ema.model.parameters()
        if averaged:
            yield self._statistics.flat
            if self._ema is not None:
                yield from (buffer for buffer in self._ema.model.buffers() if buffer.is_floating_point())


def split_hashes(places: Sequence[Place], values: Sequence[int]) -> tuple[Comparison, ...]:
    """Return the comparisons at `places` from the sums over ranks, one after the other."""
    ranks = len(values) // len(places) if places else 0
    return tuple(
        Comparison(place, tuple(values[number * ranks : (number + 1) * ranks])) for number, place in enumerate(places)
    )


def _tensors_of(state: Mapping[str, object]) -> list[Tensor]:
    return [value for _, value in sorted(state.items()) if isinstance(value, Tensor)]
