"""Order and shares of images: permutations, exact coverage, exact resumption."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.sampler import batches_per_epoch, epoch_order, eval_indices, rank_indices
from trainer.errors import UsageError

seeds = st.integers(0, 2**31 - 1)


@given(n=st.integers(0, 400), seed=seeds, epoch=st.integers(0, 1000))
def test_an_epoch_is_a_permutation_that_depends_on_seed_and_epoch_alone(n: int, seed: int, epoch: int) -> None:
    order = epoch_order(n, seed=seed, epoch=epoch)
    assert sorted(order.tolist()) == list(range(n))
    assert np.array_equal(order, epoch_order(n, seed=seed, epoch=epoch))
    if n >= 50:
        assert not np.array_equal(order, epoch_order(n, seed=seed, epoch=epoch + 1))
        assert not np.array_equal(order, epoch_order(n, seed=seed + 1, epoch=epoch))


def test_an_epochs_order_never_changes_between_versions_of_the_libraries() -> None:
    assert epoch_order(8, seed=0, epoch=0).tolist() == [7, 1, 3, 4, 5, 6, 0, 2]


@given(n=st.integers(1, 300), world_size=st.integers(1, 5), batch_size=st.integers(1, 20), seed=seeds)
def test_training_ranks_share_each_global_batch_in_order(n: int, world_size: int, batch_size: int, seed: int) -> None:
    global_batch_size = world_size * batch_size
    order = epoch_order(n, seed=seed, epoch=3)
    if global_batch_size > n:
        with pytest.raises(UsageError, match=f"makes {global_batch_size:,} images per step"):
            list(rank_indices(order, rank=0, world_size=world_size, batch_size=batch_size))
        return
    ranks = [
        list(rank_indices(order, rank=rank, world_size=world_size, batch_size=batch_size)) for rank in range(world_size)
    ]
    steps = batches_per_epoch(n, world_size=world_size, batch_size=batch_size)
    assert [len(batches) for batches in ranks] == [steps] * world_size
    seen = np.concatenate([batches[step] for step in range(steps) for batches in ranks])
    assert np.array_equal(seen, order[: n - n % global_batch_size])


@given(start_step=st.integers(0, 12), rank=st.integers(0, 3))
def test_a_resumed_epoch_goes_on_with_the_very_next_batch(start_step: int, rank: int) -> None:
    order = epoch_order(100, seed=1, epoch=2)
    whole = list(rank_indices(order, rank=rank, world_size=4, batch_size=2))
    rest = list(rank_indices(order, rank=rank, world_size=4, batch_size=2, start_step=start_step))
    assert [batch.tolist() for batch in rest] == [batch.tolist() for batch in whole[start_step:]]


def test_half_the_devices_with_twice_the_batch_see_the_same_global_batches() -> None:
    order = epoch_order(96, seed=1, epoch=2)
    eight = [list(rank_indices(order, rank=rank, world_size=8, batch_size=2)) for rank in range(8)]
    four = [list(rank_indices(order, rank=rank, world_size=4, batch_size=4)) for rank in range(4)]
    for step in range(6):
        assert np.array_equal(np.concatenate([r[step] for r in eight]), np.concatenate([r[step] for r in four]))


@given(n=st.integers(0, 300), world_size=st.integers(1, 9), batch_size=st.integers(1, 40))
def test_evaluation_covers_every_image_exactly_once(n: int, world_size: int, batch_size: int) -> None:
    ranks = [
        list(eval_indices(n, rank=rank, world_size=world_size, batch_size=batch_size)) for rank in range(world_size)
    ]
    seen = [sample for batches in ranks for batch in batches for sample in batch.tolist()]
    assert seen == list(range(n))
    assert all(0 < len(batch) <= batch_size for batches in ranks for batch in batches)
    shares = sorted(sum(len(batch) for batch in batches) for batches in ranks)
    assert shares[-1] - shares[0] <= 1


@pytest.mark.parametrize(
    ("n", "world_size", "advice"), [(200, 8, "use --batch-size 25 or less"), (3, 8, "use at most 3 devices")]
)
def test_a_batch_larger_than_the_data_is_refused_with_what_would_fit(n: int, world_size: int, advice: str) -> None:
    with pytest.raises(UsageError) as refusal:
        batches_per_epoch(n, world_size=world_size, batch_size=32)
    assert "256 images per step" in str(refusal.value)
    assert str(refusal.value).endswith(advice)


def test_successive_epochs_leave_out_different_images() -> None:
    left_out = [set(epoch_order(103, seed=0, epoch=epoch)[96:].tolist()) for epoch in range(4)]
    assert all(one != other for one, other in pairwise(left_out))
