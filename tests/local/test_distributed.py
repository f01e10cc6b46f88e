"""What ranks do together, over real gloo processes: one gradient, one set of statistics, exact sums."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn

from trainer.batch_norm import BatchStatistics
from trainer.devices import open_device
from trainer.distributed import data_parallel, equalise, join, leave, sum_over_ranks
from trainer.topology.ports import free_port


def _enter(rank: int, world_size: int, port: int, task: Callable[..., None], *arguments: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo", OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    join(open_device("cpu"), rank=rank, world_size=world_size, master_port=port, stall_timeout_s=900)
    task(rank, world_size, *arguments)
    leave()


def _on_ranks(world_size: int, task: Callable[..., None], *arguments: Any) -> None:
    spawn(_enter, args=(world_size, free_port(), task, *arguments), nprocs=world_size)


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def _images() -> torch.Tensor:
    return torch.randn(12, 3, 9, 9, generator=torch.Generator().manual_seed(1))


def _gradients(rank: int, world_size: int, folder: Path) -> None:
    network = _network()
    parallel = data_parallel(network, torch.device("cpu"))
    share = _images().chunk(world_size)[rank]
    parallel(share).square().mean().backward()
    torch.save([p.grad for p in network.parameters()], folder / f"{rank}.pt")


@pytest.mark.parametrize("world_size", [2, 3])
def test_every_rank_has_the_gradient_of_the_whole_batch(tmp_path: Path, world_size: int) -> None:
    _on_ranks(world_size, _gradients, tmp_path)
    network = _network()
    network(_images()).square().mean().backward()
    for rank in range(world_size):
        for mine, whole in zip(torch.load(tmp_path / f"{rank}.pt"), network.parameters(), strict=True):
            torch.testing.assert_close(mine, whole.grad)


def _statistics(rank: int, world_size: int, folder: Path) -> None:
    network = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(2))
    for name, buffer in network.named_buffers():
        number, _, kind = name.partition(".")
        buffer.fill_({"running_mean": rank + int(number), "running_var": 10 * rank + 1}.get(kind, 7))
    equalise(BatchStatistics(network))
    torch.save(network.state_dict(), folder / f"{rank}.pt")


def test_batch_norm_statistics_become_the_mean_over_ranks(tmp_path: Path) -> None:
    _on_ranks(3, _statistics, tmp_path)
    for rank in range(3):
        state = torch.load(tmp_path / f"{rank}.pt")
        assert state["0.running_mean"].tolist() == [1.0] * 4
        assert state["1.running_mean"].tolist() == [2.0] * 2
        assert state["1.running_var"].tolist() == [11.0] * 2
        assert state["0.num_batches_tracked"].item() == 7


def _sum(rank: int, world_size: int, folder: Path) -> None:
    total = sum_over_ranks(torch.tensor([rank, 2**40 + rank]))
    assert total.tolist() == [3, 3 * 2**40 + 3]
    assert dist.get_world_size() == world_size
    (folder / str(rank)).touch()


def test_counts_are_summed_exactly(tmp_path: Path) -> None:
    _on_ranks(3, _sum, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
