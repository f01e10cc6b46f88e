"""Ranks work together over real gloo processes: one gradient, one set of statistics, exact sums."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn, start_processes

from trainer.devices.device import open_device
from trainer.distributed.batch_norm import BatchStatistics
from trainer.distributed.process_group import data_parallel, join_process_group, leave_process_group, sum_over_ranks
from trainer.topology.ports import listen_on_free_port, port_of

SIZES = (2, 3)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run a job of each size; return a folder with the results of its ranks in one folder for each size.

    All ranks are forks of one process that has imported torch: the import takes longer than their work.
    """
    folder = tmp_path_factory.mktemp("ranks")
    spawn(_start, args=(folder,), nprocs=1)
    return folder


def _start(_rank: int, folder: Path) -> None:
    for size in SIZES:
        (folder / str(size)).mkdir()
        listener = listen_on_free_port()
        start_processes(_work, args=(size, listener, folder / str(size)), nprocs=size, start_method="fork")


def _work(rank: int, world_size: int, listener: socket.socket, folder: Path) -> None:
    port = port_of(listener)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo", OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    inherited = None if rank else listener.detach()
    if inherited is not None:
        os.set_inheritable(inherited, True)  # as a worker finds it
    group = join_process_group(
        open_device("cpu"),
        rank=rank,
        world_size=world_size,
        master_port=port,
        stall_timeout_s=900,
        listener=inherited,
    )
    assert inherited is None or not os.get_inheritable(inherited), "a program that rank 0 starts would hold the port"
    for task in (_gradients, _statistics, _sum):
        task(rank, world_size, folder)
    leave_process_group(group)


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def _images() -> torch.Tensor:
    return torch.randn(12, 3, 9, 9, generator=torch.Generator().manual_seed(1))


def _gradients(rank: int, world_size: int, folder: Path) -> None:
    network = _network()
    parallel: Any = data_parallel(network, torch.device("cpu"), bucket_mib=3)
    assert parallel.bucket_bytes_cap == 3 << 20
    share = _images().chunk(world_size)[rank]
    parallel(share).square().mean().backward()
    torch.save([p.grad for p in network.parameters()], folder / f"gradients-{rank}.pt")


@pytest.mark.parametrize("world_size", SIZES)
def test_every_rank_has_the_gradient_of_the_whole_batch(results: Path, world_size: int) -> None:
    network = _network()
    network(_images()).square().mean().backward()
    for rank in range(world_size):
        gradients = torch.load(results / str(world_size) / f"gradients-{rank}.pt")
        for gradient, parameter in zip(gradients, network.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad)


def _statistics(rank: int, world_size: int, folder: Path) -> None:
    network = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(2))
    for name, buffer in network.named_buffers():
        number, _, kind = name.partition(".")
        buffer.fill_({"running_mean": rank + int(number), "running_var": 10 * rank + 1}.get(kind, 7))
    BatchStatistics(network).average()
    torch.save(network.state_dict(), folder / f"statistics-{rank}.pt")


def test_batch_norm_statistics_become_the_mean_over_ranks(results: Path) -> None:
    for rank in range(3):
        state = torch.load(results / "3" / f"statistics-{rank}.pt")
        assert state["0.running_mean"].tolist() == [1.0] * 4
        assert state["1.running_mean"].tolist() == [2.0] * 2
        assert state["1.running_var"].tolist() == [11.0] * 2
        assert state["0.num_batches_tracked"].item() == 7


def _sum(rank: int, world_size: int, folder: Path) -> None:
    total = sum_over_ranks(torch.tensor([rank, 2**40 + rank]))
    (folder / f"sum-{rank}").write_text(json.dumps([dist.get_world_size(), *total.tolist()]))


def test_counts_are_summed_exactly(results: Path) -> None:
    for rank in range(3):
        assert json.loads((results / "3" / f"sum-{rank}").read_text()) == [3, 3, 3 * 2**40 + 3]
