"""Order and shares of images: permutations, exact coverage, exact resumption."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from trainer.data.sampler import EpochPlan, epoch_order, eval_indices, plan_epoch
from trainer.shared.errors import UsageError

seeds = st.integers(0, 2**31 - 1)


@given(n=st.integers(0, 400), seed=seeds, epoch=st.integers(0, 1000))
def test_an_epoch_is_a_permutation_that_depends_only_on_seed_and_epoch(n: int, seed: int, epoch: int) -> None:
    order = epoch_order(n, seed=seed, epoch=epoch)
    assert sorted(order.tolist()) == list(range(n))
    assert np.array_equal(order, epoch_order(n, seed=seed, epoch=epoch))
    if n >= 50:
        assert not np.array_equal(order, epoch_order(n, seed=seed, epoch=epoch + 1))
        assert not np.array_equal(order, epoch_order(n, seed=seed + 1, epoch=epoch))


def test_an_epochs_order_is_the_same_with_every_version_of_the_libraries() -> None:
    assert epoch_order(8, seed=0, epoch=0).tolist() == [7, 1, 3, 4, 5, 6, 0, 2]


@dataclass(frozen=True)
class Shape:
    """Sizes of a job."""

    world_size: int
    batch_size: int
    accumulate: int

    @property
    def per_step(self) -> int:
        return self.world_size * self.batch_size * self.accumulate

    def plan(self, n: int, *, done: int = 0, planned: int | None = None, limit: int | None = None) -> EpochPlan:
        return plan_epoch(
            n,
            world_size=self.world_size,
            batch_size=self.batch_size,
            accumulate=self.accumulate,
            steps_limit=limit,
            done_images=done,
            planned=planned,
        )

    def steps(self, plan: EpochPlan) -> list[list[list[range]]]:
        """Return the batches by step and rank."""
        return [[plan.batches(step, rank) for rank in range(self.world_size)] for step in range(plan.steps)]


shapes = st.builds(Shape, world_size=st.integers(1, 9), batch_size=st.integers(1, 9), accumulate=st.integers(1, 4))


@given(n=st.integers(1, 2000), shape=shapes, limit=st.none() | st.integers(1, 20))
def test_a_whole_epoch_deals_full_batches_to_the_ranks_in_turn(n: int, shape: Shape, limit: int | None) -> None:
    assume(shape.per_step <= n)
    plan = shape.plan(n, limit=limit)
    batches = iter(range(0, n, shape.batch_size))
    for ranks in shape.steps(plan):
        for turn in range(shape.accumulate):
            for rank in ranks:
                first = next(batches)
                assert rank[turn] == range(first, first + shape.batch_size)
        assert {len(rank) for rank in ranks} == {shape.accumulate}
    assert plan.steps == min(n // shape.per_step, limit or n)
    assert plan.end == plan.steps * shape.per_step
    assert plan.left_out == 0


@given(n=st.integers(1, 2000), before=shapes, after=shapes, steps=st.integers(0, 50), limit=st.none() | st.just(10))
@example(n=40, before=Shape(4, 1, 1), after=Shape(3, 1, 1), steps=3, limit=None)
@example(n=40, before=Shape(4, 1, 1), after=Shape(5, 2, 2), steps=9, limit=None)
@example(n=8, before=Shape(8, 1, 1), after=Shape(4, 1, 2), steps=1, limit=None)
def test_another_number_of_devices_sees_the_rest_of_an_epoch_once(
    n: int, before: Shape, after: Shape, steps: int, limit: int | None
) -> None:
    assume(max(before.per_step, after.per_step) <= n)
    first_plan = before.plan(n, limit=limit)
    done = before.per_step * min(steps, first_plan.steps)
    plan = after.plan(n, done=done, planned=first_plan.end)
    divided = after.steps(plan)
    samples = sorted(position for ranks in divided for rank in ranks for batch in rank for position in batch)
    assert samples == list(range(done, first_plan.end - plan.left_out))
    assert plan.left_out < after.world_size
    if after.batch_size * after.accumulate > 1 and first_plan.end - done >= after.world_size:
        assert plan.left_out == 0
    _assert_even(after, plan, divided)


def _assert_even(shape: Shape, plan: EpochPlan, divided: list[list[list[range]]]) -> None:
    sizes = [sum(len(batch) for rank in ranks for batch in rank) for ranks in divided]
    assert sizes == [plan.images(step) for step in range(plan.steps)]
    assert plan.steps == -(-sum(sizes) // shape.per_step)
    assert max(sizes, default=0) - min(sizes, default=0) <= 1
    for ranks in divided:
        shares = [sum(map(len, rank)) for rank in ranks]
        assert max(shares) - min(shares) <= 1
        assert all(0 < len(batch) <= shape.batch_size for rank in ranks for batch in rank)
        assert all(0 < len(rank) <= shape.accumulate for rank in ranks)


@given(n=st.integers(1, 2000), shape=shapes, steps=st.integers(0, 50))
def test_the_same_devices_continue_with_the_next_step(n: int, shape: Shape, steps: int) -> None:
    assume(shape.per_step <= n)
    whole = shape.plan(n)
    steps = min(steps, whole.steps)
    rest = shape.plan(n, done=steps * shape.per_step, planned=whole.end)
    assert shape.steps(rest) == shape.steps(whole)[steps:]


@given(done=st.integers(0, 400), planned=st.integers(0, 400), shape=shapes, steps=st.integers(0, 50))
def test_the_rest_of_a_rest_is_the_same_steps_again(done: int, planned: int, shape: Shape, steps: int) -> None:
    rest = shape.plan(400, done=done, planned=planned)
    steps = min(steps, rest.steps)
    used = done + sum(rest.images(step) for step in range(steps))
    again = shape.plan(400, done=used, planned=planned)
    assert shape.steps(again) == shape.steps(rest)[steps:]
    assert again.left_out == rest.left_out


def test_a_plan_ends_before_removed_images() -> None:
    plan = Shape(2, 5, 1).plan(30, done=20, planned=60)
    assert (plan.steps, plan.end) == (1, 30)


def test_half_the_devices_with_twice_the_batch_see_the_same_global_batches() -> None:
    eight, four = Shape(8, 2, 1), Shape(4, 4, 1)
    for step in range(6):
        assert eight.plan(96).positions(step) == four.plan(96).positions(step) == range(16 * step, 16 * (step + 1))


@given(n=st.integers(0, 300), world_size=st.integers(1, 9), batch_size=st.integers(1, 40))
def test_evaluation_covers_every_image_exactly_once(n: int, world_size: int, batch_size: int) -> None:
    ranks = [
        list(eval_indices(n, rank=rank, world_size=world_size, batch_size=batch_size)) for rank in range(world_size)
    ]
    samples = [sample for batches in ranks for batch in batches for sample in batch.tolist()]
    assert samples == list(range(n))
    assert all(0 < len(batch) <= batch_size for batches in ranks for batch in batches)
    shares = sorted(sum(len(batch) for batch in batches) for batches in ranks)
    assert shares[-1] - shares[0] <= 1


@pytest.mark.parametrize(
    ("n", "world_size", "advice"), [(200, 8, "use --batch-size 25 or less"), (3, 8, "use at most 3 devices")]
)
def test_a_batch_larger_than_the_data_is_refused_with_one_that_fits(n: int, world_size: int, advice: str) -> None:
    with pytest.raises(UsageError) as refusal:
        Shape(world_size, 32, 1).plan(n)
    assert "256 images per step" in str(refusal.value)
    assert str(refusal.value).endswith(advice)


def test_more_batches_per_step_than_the_data_has_are_refused_with_a_number_that_fits() -> None:
    with pytest.raises(
        UsageError, match=r"--accumulate 7: a step needs 56 images, .* 50 .* use --accumulate 6 or less"
    ):
        Shape(4, 2, 7).plan(50)


def test_successive_epochs_leave_out_different_images() -> None:
    left_out = [set(epoch_order(103, seed=0, epoch=epoch)[96:].tolist()) for epoch in range(4)]
    assert all(first != second for first, second in pairwise(left_out))
