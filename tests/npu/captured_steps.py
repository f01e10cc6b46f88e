"""Ranks on emulated NPUs take the same steps eagerly and captured. Rank 0 writes what came of both as JSON.

`test_captured_steps.py` starts it, with an environment in which torch imports no device by itself: the ranks are forks.
Batches have parts of two sizes, and the last one of the epoch is smaller. Some images of the last rank become NaN, so
that all ranks leave the step out.
"""

import argparse
import hashlib
import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from trainer.data.loader import ImageBatch, network_input, to_device
from trainer.data.sampler import EpochPlan, plan_epoch
from trainer.devices.device import open_device
from trainer.distributed.process_group import join_process_group, leave_process_group, warm_up_ddp
from trainer.shared.config import TrainConfig
from trainer.topology.ports import free_port
from trainer.training import steps as steps_module
from trainer.training.checkpoints import state_tensors
from trainer.training.steps import Training, train_steps
from trainer.worker.start import blank_images, build_training, make_watchdog
from trainer.worker.task import WorkerTask

IMAGES = 7
SETTINGS: dict[str, Any] = {
    **{"model": "pnasnet5tiny", "image_size": 32, "device": "npu", "lr": 0.02, "schedule": "cosine-step", "epochs": 1},
    **{"batch_size": IMAGES, "micro_batch": 4, "accumulate": 2, "aux": "tf", "label_smoothing": 0.1, "dropout": 0.5},
    **{"drop_path": 0.3, "mixup": 0.2, "cutmix": 1.0, "clip_norm": 5.0, "ema": 0.99, "log_interval": 5, "seed": 3},
}
SPOILED_EVERY = 4


def main() -> None:
    """Run the ranks; rank 0 writes what they did."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", required=True)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    job = parser.parse_args()
    start_processes(_work, args=(job, free_port()), nprocs=job.ranks, start_method="fork")


def _work(rank: int, job: argparse.Namespace, port: int) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo", TORCH_CPP_LOG_LEVEL="ERROR"
    )
    torch.set_num_threads(1)
    runtime = open_device("npu")
    device = runtime.open(rank)
    group = join_process_group(runtime, rank=rank, world_size=job.ranks, master_port=port, stall_timeout_s=900)
    outcomes = {}
    for graph in ("off", "on"):
        config = TrainConfig.model_validate({**SETTINGS, "precision": job.precision, "graph": graph})
        task = WorkerTask(config, Path("unused"), device="npu", rank=rank, local_rank=rank, world_size=job.ranks)
        watchdog = make_watchdog(task)
        training = build_training(
            task, config, runtime, device, weights=None, num_classes=10, group=group, watchdog=watchdog
        )
        warm_up_ddp(training.parallel, partial(blank_images, training))
        outcomes[graph] = _outcome(training, job.steps)
        training.requests.settle()
    if rank == 0:
        job.output.write_text(json.dumps(outcomes))
    leave_process_group(group)


def _outcome(training: Training, steps: int) -> dict[str, Any]:
    """Take the steps. Return the figures of each, the state at their end, and the parts of the time of one step."""
    marks: list[str] = []
    take_mark = training.clock.mark

    def mark(part: str) -> None:
        marks.append(part)
        take_mark(part)

    config = training.config
    plan = _plan(config, steps, training.world_size)
    batches = to_device(_batches(plan, training.rank), training.device)
    with mock.patch.object(training.clock, "mark", mark), _spoiled(training):
        windows = list(train_steps(training, batches, plan, epoch=0, first_step=0, warmup_left=0))
    begin = marks.index("data")
    state, scale = state_tensors(training), training.precision.state_dict()
    return {
        "steps": plan.steps,
        "losses": [loss for window in windows for loss in window.losses],
        "correct": [window.correct for window in windows],
        "skipped": [bad is not None for window in windows for bad in window.bad],
        "results": [result for window in windows for result in window.results],
        "scale": [scale.get(name) for name in ("scale", "_growth_tracker")],
        "state": {name: _sha256(tensor) for name, tensor in state.items()},
        "marks": marks[begin : marks.index("data", begin + 1)],
    }


def _plan(config: TrainConfig, steps: int, ranks: int) -> EpochPlan:
    """Return whole steps, and a last one with fewer images."""
    whole = steps * config.batch_size * config.accumulate * ranks
    return plan_epoch(
        whole + 3 * ranks, world_size=ranks, batch_size=IMAGES, accumulate=config.accumulate, steps_limit=None
    )


def _batches(plan: EpochPlan, rank: int) -> Iterator[ImageBatch]:
    images = torch.Generator().manual_seed(rank)
    for step in range(plan.steps):
        for batch in plan.batches(step, rank):
            count = len(batch)
            pixels = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=images)
            labels = torch.randint(10, (count,), generator=images)
            yield ImageBatch(pixels, labels, torch.arange(count))


def _spoiled(training: Training) -> Any:
    """Let some inputs of the last rank be NaN: the host does it, before a graph reads them."""
    calls = iter(range(1, 1 << 62))

    def spoil(batch: ImageBatch, config: TrainConfig) -> Tensor:
        inputs = network_input(batch, config)
        bad = next(calls) % (SPOILED_EVERY * config.accumulate) == 0 and training.rank + 1 == training.world_size
        return inputs * torch.nan if bad else inputs

    return mock.patch.object(steps_module, "network_input", spoil)


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


if __name__ == "__main__":
    main()
