"""Ranks on emulated NPUs compare their states: bits flip in one of them, or none do. Writes one line of JSON.

`test_corruption.py` starts it, with an environment in which torch imports no device by itself: the ranks are forks.

A flip is one random bit of a random element of one rank's weights, momentum, average, gradient (after the exchange), or
batch statistics (after they were averaged). The oracle is the SHA-256 of every byte of a rank's state: a flip that a
rounding has hidden again leaves no corrupt state, and is counted as `hidden`.
"""

import argparse
import hashlib
import itertools
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes

from trainer.data.loader import ImageBatch, network_input, to_device
from trainer.data.sampler import plan_epoch
from trainer.devices.device import open_device
from trainer.distributed.process_group import all_gather_object, join_process_group, leave_process_group, warm_up_ddp
from trainer.shared.config import TrainConfig
from trainer.topology.ports import free_port
from trainer.training import steps as steps_module
from trainer.training.comparison import Comparison, Place
from trainer.training.corruption import find_wrong_ranks
from trainer.training.steps import Training, train_steps
from trainer.worker import start
from trainer.worker.start import blank_images, build_training, make_watchdog
from trainer.worker.task import WorkerTask

PARTS = ("weights", "momentum", "gradient", "average", "statistics")
IMAGES = 4
BAD_EVERY, BAD_PASSES = 17, 5
"""In clean steps, some forward passes of rank 1 are not finite, so that all ranks leave the step out.

Only five of them: each halves the loss scale, which needs 2,000 good steps to double.
"""
SETTLED_STEPS = 12
REPEATED_STEPS = 4
INTS = {2: torch.int16, 4: torch.int32}


@dataclass(frozen=True)
class Job:
    """What all ranks do."""

    precision: str
    ranks: int
    flips: int
    clean_steps: int
    replays: int
    accumulate: int
    small: bool
    graph: str
    seed: int
    port: int
    output: Path


def main() -> None:
    """Run the ranks; rank 0 writes what it counted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--flips", type=int, default=0)
    parser.add_argument("--clean-steps", type=int, default=0)
    parser.add_argument("--replays", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="three layers instead of pnasnet5tiny: ten times faster")
    parser.add_argument("--graph", default="off", help="captured steps")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    job = Job(**vars(parser.parse_args()), port=free_port())
    start_processes(_work, args=(job,), nprocs=job.ranks, start_method="fork")


def _work(rank: int, job: Job) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(job.port), GLOO_SOCKET_IFNAME="lo", TORCH_CPP_LOG_LEVEL="ERROR"
    )
    torch.set_num_threads(1)
    ranks = _Ranks(rank, job)
    clean = ranks.train_cleanly(job.clean_steps)
    flipped = ranks.flip_bits(job.flips)
    repeated = ranks.repeat_steps(job.replays)
    if rank == 0:
        job.output.write_text(json.dumps({"seed": job.seed, **clean, **flipped, **repeated}))
    leave_process_group(ranks.training.group)


class _SmallNetwork(nn.Sequential):
    """Convolution, batch norm and classifier."""

    def set_progress(self, _fraction: float) -> None:
        """Take what a PNASNet takes; there is no drop-path."""


def _small_network(_config: TrainConfig, num_classes: int) -> nn.Module:
    layers = (nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return _SmallNetwork(*layers, nn.Dropout(0.5), nn.Linear(8, num_classes))


class _Ranks:
    """One rank; every rank draws the same flips, and the rank at fault does them."""

    def __init__(self, rank: int, job: Job) -> None:
        # The dynamic loss scale of fp16 and O2 overflows in the first steps.
        settings: dict[str, Any] = {
            **{"model": "pnasnet5tiny", "image_size": 32, "batch_size": IMAGES, "aux": "none", "device": "npu"},
            **{"precision": job.precision, "lr": 0.02, "ema": 0.9, "log_interval": 10, "compare_every": 1},
            **{"accumulate": job.accumulate, "clip_norm": 5.0, "drop_path": 0.2, "epochs": 1, "graph": job.graph},
        }
        config = TrainConfig.model_validate(settings)
        task = WorkerTask(config, Path("unused"), device="npu", rank=rank, local_rank=rank, world_size=job.ranks)
        runtime, watchdog = open_device("npu"), make_watchdog(task)
        device = runtime.open(rank)
        group = join_process_group(
            runtime, rank=rank, world_size=job.ranks, master_port=job.port, stall_timeout_s=config.stall_timeout_s
        )
        with mock.patch.object(start, "build_model", _small_network) if job.small else nullcontext():
            self.training: Training = build_training(
                task, config, runtime, device, weights=None, num_classes=10, group=group, watchdog=watchdog
            )
        warm_up_ddp(self.training.parallel, lambda: blank_images(self.training))
        self._rank, self._job = rank, job
        self._random = random.Random(job.seed)
        self._images = torch.Generator().manual_seed(rank)
        # A flip at the step `_flip_at` of the next steps: of its gradient, or before it.
        self._flip_at = 0
        self._on_gradient: Callable[[], None] | None = None
        self._on_batch: Callable[[], None] | None = None
        self._updates = 0
        if self.training.captured is None:
            self.training.optimizer.register_step_pre_hook(self._gradient_hook)
        else:  # a graph calls no hooks
            gradients = self.training.captured.gradients
            average = gradients.average
            gradients.average = lambda: self._gradient_hook(average())  # type: ignore[method-assign]  # only here

    def train_cleanly(self, steps: int) -> dict[str, Any]:
        """Return the comparisons and false alarms of `steps` steps, and how many steps were left out."""
        calls = itertools.count(1)

        def spoil(batch: ImageBatch, config: TrainConfig) -> Tensor:
            inputs, number = network_input(batch, config), next(calls)
            bad = self._rank == 1 and number % BAD_EVERY == 0 and number <= BAD_EVERY * BAD_PASSES
            return inputs * torch.nan if bad else inputs

        compared = alarms = skipped = 0
        for _ in range(0, steps, 10):
            with mock.patch.object(steps_module, "network_input", spoil):
                comparisons, bad = self._train(10)
            self.training.statistics.average()
            now = self.training.comparison.compare_now(Place(0, 0, averaged=True))
            assert now is not None
            compared += len(comparisons) + 1
            alarms += sum(not one.agreed for one in [*comparisons, now])
            skipped += bad
        return {"clean_steps": -(-steps // 10) * 10, "compared": compared, "alarms": alarms, "skipped": skipped}

    def flip_bits(self, count: int) -> dict[str, Any]:
        """Return how many of `count` corrupt states were found, and how often the rank was named."""
        kinds: Counter[str] = Counter()
        hidden = found = named = 0
        restore = self._settle() if count else None
        parts = itertools.cycle(PARTS)
        while restore is not None and kinds.total() < count:
            part, wrong = next(parts), self._random.randrange(self._job.ranks)
            comparison = self._flipped(part, wrong)
            states = all_gather_object(self._sha256(averaged=comparison.place.averaged), self.training.group)
            if len(set(states)) == 1:
                hidden += 1
                assert comparison.agreed
            else:
                verdict = find_wrong_ranks(comparison, None)
                kinds[part] += 1
                found += not comparison.agreed
                named += verdict is not None and verdict.ranks == (wrong,)
            restore()
        return {"corrupted": kinds.total(), "found": found, "named": named, "hidden": hidden, "parts": dict(kinds)}

    def repeat_steps(self, count: int) -> dict[str, Any]:
        """Return how often a replay named the wrong one of two ranks, for `count` flips within the repeated steps."""
        comparison, outcomes = self.training.comparison, Counter[str]()
        restore = self._settle() if count else None
        while restore is not None and outcomes.total() < count:
            part, wrong = self._random.choice(PARTS[:3]), self._random.randrange(self._job.ranks)
            self._flip_at = self._random.randrange(REPEATED_STEPS)
            before = self._repeated(outcomes.total(), part, wrong)
            restore()
            if before.agreed:
                continue
            comparison.disputed = before
            comparison.discard()
            now = self._repeated(outcomes.total(), None, wrong)
            differences = all_gather_object(comparison.first_difference, self.training.group)
            verdict = find_wrong_ranks(now, before, differences)
            comparison.disputed = None
            restore()
            assert verdict is not None
            assert verdict.agreed
            outcomes["named" if verdict.ranks == (wrong,) else "another" if verdict.ranks else "unknown"] += 1
        return {"replays": dict(outcomes)}

    def _settle(self) -> Callable[[], None]:
        """Train until momentum and a fused optimizer's buffers exist and the loss scale fits.

        Return a function that restores this state.
        """
        self._train(SETTLED_STEPS)
        training = self.training
        assert training.ema is not None
        saved, updates = [tensor.clone() for tensor in self._everything()], training.ema.updates
        scale = dict(training.precision.state_dict())

        def restore() -> None:
            for tensor, before in zip(self._everything(), saved, strict=True):
                tensor.detach().copy_(before)
            training.precision.load_state_dict(dict(scale))
            assert training.ema is not None
            training.ema.updates = updates

        return restore

    def _repeated(self, trial: int, part: str | None, wrong: int) -> Comparison:
        """Take the steps of a trial, with a flip in `part` at one of them; return the comparison at their end."""
        self._images.manual_seed(1000 * trial + self._rank)
        if part == "gradient":
            self._on_gradient = lambda: self._flip(self._gradients(), wrong)
        elif part is not None:
            self._on_batch = lambda: self._flip(self._tensors(part), wrong)
        return self._train(REPEATED_STEPS)[0][-1]

    def _tensors(self, part: str) -> list[Tensor]:
        return {"weights": self._weights, "momentum": self._momenta, "average": self._averages}[part]()

    def _flipped(self, part: str, wrong: int) -> Comparison:
        """Flip a bit of `part` on the rank `wrong`, before or after a step; return the next comparison."""
        if part == "statistics":
            self.training.statistics.average()
            self._flip([self.training.statistics.flat], wrong)
            now = self.training.comparison.compare_now(Place(0, 0, averaged=True))
            assert now is not None
            return now
        self._flip_at = 0
        if part == "gradient":
            self._on_gradient = lambda: self._flip(self._gradients(), wrong)
            return self._train(1)[0][-1]
        if self._random.random() < 0.5:
            self._on_batch = lambda: self._flip(self._tensors(part), wrong)
            return self._train(1)[0][-1]
        self._train(1)
        self._flip(self._tensors(part), wrong)
        now = self.training.comparison.compare_now(Place(0, 1, averaged=False))
        assert now is not None
        return now

    def _flip(self, tensors: list[Tensor], wrong: int) -> None:
        """Flip one bit; each element of `tensors` has the same chance. Every rank makes the same draws."""
        tensor = self._random.choices(tensors, [tensor.numel() for tensor in tensors])[0]
        place, bit = self._random.randrange(tensor.numel()), self._random.randrange(8 * tensor.itemsize)
        if self._rank == wrong:
            words = tensor.detach().view(-1).view(INTS[tensor.itemsize])
            mask = 1 << bit if bit + 1 < 8 * tensor.itemsize else -(1 << bit)
            words[place] ^= mask

    def _train(self, steps: int) -> tuple[tuple[Comparison, ...], int]:
        """Take steps; return their comparisons, and the number of steps that were left out."""
        training = self.training
        config = training.config
        plan = plan_epoch(
            steps * IMAGES * self._job.ranks * config.accumulate,
            world_size=self._job.ranks,
            batch_size=IMAGES,
            accumulate=config.accumulate,
            steps_limit=steps,
        )
        self._updates = 0
        batches = self._on_device(steps * config.accumulate)
        windows = list(train_steps(training, batches, plan, epoch=0, first_step=0, warmup_left=0))
        self._on_gradient = self._on_batch = None
        for window in windows:
            training.comparison.add_results(window.results, epoch=0, first_step=window.first_step)
        comparisons = tuple(one for window in windows for one in window.comparisons)
        return comparisons, sum(bad is not None for window in windows for bad in window.bad)

    def _on_device(self, count: int) -> Iterator[ImageBatch]:
        """Yield batches on the device. `to_device` is one batch ahead, so that a flip must come after it."""
        for number, batch in enumerate(to_device(self._batches(count), self.training.device)):
            if self._on_batch is not None and number == self._flip_at * self._job.accumulate:
                self._on_batch()
            yield batch

    def _batches(self, count: int) -> Iterator[ImageBatch]:
        for _ in range(count):
            images = torch.randint(256, (IMAGES, 3, 32, 32), dtype=torch.uint8, generator=self._images)
            labels = torch.randint(10, (IMAGES,), generator=self._images)
            yield ImageBatch(images, labels, torch.arange(IMAGES))

    def _gradient_hook(self, *_arguments: Any) -> None:
        if self._on_gradient is not None and self._updates == self._flip_at:
            self._on_gradient()
        self._updates += 1

    def _optimized(self) -> list[Tensor]:
        return [parameter for group in self.training.optimizer.param_groups for parameter in group["params"]]

    def _weights(self) -> list[Tensor]:
        return [*self.training.network.parameters(), *self._optimized()]

    def _momenta(self) -> list[Tensor]:
        return [self.training.optimizer.state[parameter]["momentum_buffer"] for parameter in self._optimized()]

    def _averages(self) -> list[Tensor]:
        assert self.training.ema is not None
        return list(self.training.ema.model.parameters())

    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self._optimized() if parameter.grad is not None]

    def _everything(self) -> list[Tensor]:
        return [*self._weights(), *self._momenta(), *self._averages(), self.training.statistics.flat]

    def _sha256(self, *, averaged: bool) -> str:
        tensors = self._everything()
        digest = hashlib.sha256()
        for tensor in tensors if averaged else tensors[:-1]:
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


if __name__ == "__main__":
    main()
