"""The comparison of the ranks' states: what it costs, and what it compares."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.training.test_state_hash import STEP_OPERATORS, OperatorCalls
from tests.unit.training.test_steps import HostReads
from trainer.data.loader import ImageBatch
from trainer.data.sampler import plan_epoch
from trainer.devices.device import open_device
from trainer.shared.config import TrainConfig
from trainer.training import steps
from trainer.training.comparison import PAIR, Place, StateComparison
from trainer.training.steps import StepWindow, Training
from trainer.training.time_split import PARTS
from trainer.worker.start import build_training, make_watchdog
from trainer.worker.task import WorkerTask

SMALL = {"model": "pnasnet5tiny", "image_size": 32, "batch_size": 4, "aux": "none", "device": "cpu", "lr": 0.05}
BEGINNING = Place(0, 0, averaged=False)


def comparing_training(*, ranks: int = 2, **settings: Any) -> Training:
    """Return the parts of rank 1 of `ranks`, without its peers: a sum over ranks is then its own number."""
    config = TrainConfig.model_validate({**SMALL, "ema": 0.9, "momentum": 0.9, **settings})
    task = WorkerTask(config, Path("unused"), rank=min(1, ranks - 1), world_size=ranks)
    single = WorkerTask(config, Path("unused"))
    runtime, watchdog = open_device("cpu"), make_watchdog(single)
    return build_training(task, config, runtime, torch.device("cpu"), weights=None, num_classes=10, watchdog=watchdog)


def _train(training: Training, count: int) -> list[StepWindow]:
    plan = plan_epoch(4 * count, world_size=1, batch_size=4, accumulate=1, steps_limit=count)
    training.rank = 0  # its share of the plan
    return list(steps.train_steps(training, _batches(count), plan, epoch=0, first_step=0, warmup_left=0))


def _batches(count: int) -> Iterator[ImageBatch]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8, generator=generator)
        yield ImageBatch(images, torch.arange(4), torch.arange(4))


def _hash(training: Training, *, averaged: bool = False) -> int:
    comparison = training.comparison.compare_now(Place(0, 0, averaged=averaged))
    assert comparison is not None
    assert comparison.hashes[0] == 0, "the other rank's"
    return comparison.hashes[1]


def test_comparisons_add_no_reduction_and_no_wait_to_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar is one small collective per comparison; the hashes travel with the counts of a window instead."""
    sizes: dict[int, list[int]] = {}
    for every in (0, 1, 2):
        sizes[every] = []
        training = comparing_training(compare_every=every, log_interval=4)

        def count(values: Tensor, sums: list[int] = sizes[every]) -> Tensor:
            sums.append(values.numel())
            return values

        monkeypatch.setattr(steps, "sum_over_ranks", count)
        with HostReads() as reads:
            windows = _train(training, 8)
        assert reads.count == 0
        places = [(one.place.step, one.hashes[0]) for window in windows for one in window.comparisons]
        assert places == [(step, 0) for step in range(1, 9) if every and step % every == 0]
    # For each window the losses of four steps; two counts and the times of two ranks. A hash of each is 8 bytes more.
    counts = 2 + 2 * len(PARTS)
    assert sizes == {every: 2 * [4, counts + hashes * 2] for every, hashes in ((0, 0), (1, 4), (2, 2))}


def test_two_ranks_add_a_hash_of_their_logits_to_each_step() -> None:
    """It is within the bar too: a hundredth of the operators of a step of pnasnet5large."""
    operators = {}
    for ranks in (2, 3):
        training = comparing_training(ranks=ranks)
        _train(training, 1)
        with OperatorCalls() as counted:
            (window,) = _train(training, 1)
        operators[ranks] = counted.calls.total()
        assert len(window.results) == (1 if ranks == PAIR else 0)
    assert 0 < operators[2] - operators[3] <= 0.006 * STEP_OPERATORS


def test_one_rank_and_an_interval_of_zero_compare_nothing() -> None:
    for training in (comparing_training(ranks=1), comparing_training(compare_every=0)):
        training.comparison.after_step(epoch=0, step=100)
        assert training.comparison.take_pending() == ([], [])
        assert training.comparison.compare_now(BEGINNING) is None
        assert training.comparison.ranks == 0


def test_every_part_of_the_state_counts_and_statistics_only_once_they_were_averaged() -> None:
    training = comparing_training()
    assert training.ema is not None
    parameter = training.network.last_linear.weight
    compared = {
        "weights": parameter,
        "momentum": training.optimizer.state[parameter]["momentum_buffer"],
        "average": training.ema.model.last_linear.weight,
    }
    before, averaged = _hash(training), _hash(training, averaged=True)
    for tensor in compared.values():
        saved = tensor.detach().clone()
        with torch.no_grad():
            tensor.view(-1)[7] += 1
        assert _hash(training) != before
        with torch.no_grad():
            tensor.copy_(saved)
    assert _hash(training) == before
    buffers = (training.statistics.flat, training.ema.model.get_buffer("conv_0.bn.running_mean"))
    for statistics in buffers:
        statistics[3] += 1
        assert _hash(training) == before, "ranks have their own statistics between averages"
        assert _hash(training, averaged=True) != averaged
        statistics[3] -= 1


def test_a_disputed_place_is_compared_again_between_two_intervals() -> None:
    training = comparing_training(compare_every=100)
    comparison: StateComparison = training.comparison
    comparison.disputed = comparison.compare_now(Place(0, 2, averaged=False))
    windows = _train(training, 3)
    assert [one.place.step for window in windows for one in window.comparisons] == [2]
