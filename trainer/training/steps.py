"""Training as small functions: steps over batches, with no host synchronisation in between.

Device values (losses, counts) are collected as tensors and read once per log interval: reading one waits for the whole
queue of an accelerator.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.data.augment import mix
from trainer.data.bad_images import BadImages
from trainer.data.loader import Batch
from trainer.data.sampler import EpochPlan
from trainer.devices.device import Device
from trainer.distributed.batch_norm import BatchStatistics
from trainer.distributed.process_group import sum_over_ranks
from trainer.distributed.stop_requests import Request, Requests
from trainer.distributed.watchdog import Watchdog
from trainer.model import PNASNet5
from trainer.model.loss import correct_top_k, main_logits, training_loss
from trainer.records.run_records import Heartbeat
from trainer.seeds import key
from trainer.shared.config import TrainConfig
from trainer.training.ema import Ema
from trainer.training.precision import Precision
from trainer.training.schedule import learning_rate, progress

PEERS = "the device or its peers"
"""What a rank waits for that has work under way."""


@dataclass
class Training:
    """The parts of a run that live as long as it does."""

    config: TrainConfig
    """With what its weights brought along."""
    rank: int
    world_size: int
    runtime: Device
    device: torch.device
    network: PNASNet5
    parallel: nn.Module
    """`network`, or its data-parallel wrapper."""
    precision: Precision
    optimizer: torch.optim.Optimizer
    ema: Ema | None
    micro_batch: int
    """Images per forward pass; larger batches are computed in parts."""
    heartbeat: Heartbeat
    statistics: BatchStatistics
    """The batch norms' of `network`."""
    group: dist.ProcessGroup | None
    """In which the ranks' hosts talk; None for a single process."""
    requests: Requests
    watchdog: Watchdog
    bad_images: BadImages
    bad_paths: set[str] = field(default_factory=set)
    """Of all ranks, in this process's life."""

    @property
    def evaluated(self) -> PNASNet5:
        """The model whose accuracy is the run's: the average where there is one."""
        return self.network if self.ema is None else self.ema.model


@dataclass(frozen=True)
class BadStep:
    """A step without an update.

    Attributes:
        own_loss: this rank's own loss was not finite.
        samples: this rank's images in it, by their positions in the training images' index.
    """

    own_loss: bool
    samples: tuple[int, ...]


@dataclass(frozen=True)
class Window:
    """What the whole job did in some consecutive steps; `losses` has one true (unscaled) loss for each of them."""

    first_step: int
    losses: tuple[float, ...]
    lrs: tuple[float, ...]
    images: int
    correct: int
    seconds: float
    timed: bool
    """False in the warm-up, which the images/s figure leaves out."""
    bad: tuple["BadStep | None", ...]
    """For each step, what is known of it if its update was left out because loss or gradient was not finite."""
    request: Request
    """What all ranks have agreed to do after its last step."""


def train_steps(
    training: Training,
    batches: Iterator[Batch],
    plan: EpochPlan,
    *,
    epoch: int,
    first_step: int,
    warmup_left: int,
    prepare: Callable[[Batch], Tensor],
    wish: Callable[[int], Request] = lambda _steps: Request.NONE,
    lr_factor: float = 1.0,
) -> Iterator[Window]:
    """Take the optimizer steps of `plan`; yield a window at each log interval, at a request, and at the end.

    Args:
        batches: this rank's, in the order of `plan`.
        first_step: steps of the epoch that are done; the plan's first is this one.
        warmup_left: steps of this epoch that still belong to the warm-up, counted from the epoch's beginning.
        prepare: turns a batch's uint8 images into the network's input.
        wish: what this rank wants after so many steps of `plan`.
    """
    config, steps = training.config, first_step + plan.steps
    sums = _Sums(first_step, time.perf_counter())
    training.parallel.train()
    for step in range(first_step, steps):
        lr = lr_factor * learning_rate(config, epoch=epoch, step=step, steps=steps)
        _begin_step(training, epoch=epoch, step=step, steps=steps, lr=lr)
        with training.watchdog.waiting("data", epoch=epoch, step=step):
            taken = list(islice(batches, len(plan.batches(step - first_step, training.rank))))
        with training.watchdog.waiting(PEERS, epoch=epoch, step=step):
            job_images = plan.images(step - first_step)
            sums.add(_step(training, taken, job_images=job_images, epoch=epoch, step=step, prepare=prepare), lr)
            # One step ahead: the answer is read after the step that is wished for.
            request = training.requests.exchange(wish(step + 2 - first_step))
            if not (request or (step + 1) % config.log_interval == 0 or step + 1 in (warmup_left, steps)):
                continue
            window, now = sums.read(training, timed=step >= warmup_left, request=request)
        # From `now`: what the window's reader does until it wants the next one is the run's time too.
        sums = _Sums(step + 1, now)
        yield window


def _begin_step(training: Training, *, epoch: int, step: int, steps: int, lr: float) -> None:
    for group in training.optimizer.param_groups:
        group["lr"] = lr
    training.network.set_progress(progress(training.config, epoch=epoch, step=step, steps=steps))


@dataclass(frozen=True)
class _Step:
    """Mean loss, right answers and whether the update was left out, and this rank's batches; all on the device."""

    loss: Tensor
    correct: Tensor
    skipped: Tensor
    batches: list[Tensor]
    """Of each batch the images' positions in the index."""


class _Sums:
    """What some consecutive steps came to, on the device until it is read."""

    def __init__(self, first_step: int, began: float) -> None:
        self._first_step, self._began = first_step, began
        self._steps: list[_Step] = []
        self._lrs: list[float] = []

    def add(self, step: _Step, lr: float) -> None:
        self._steps.append(step)
        self._lrs.append(lr)

    def read(self, training: Training, *, timed: bool, request: Request) -> tuple[Window, float]:
        """The steps as a window over all ranks, and when it ended: two reductions, and one wait for the device."""
        own = torch.stack([step.loss for step in self._steps])
        own_finite = torch.isfinite(own)
        losses = sum_over_ranks(own) / training.world_size
        correct = torch.stack([step.correct for step in self._steps]).sum()
        images = sum(len(batch) for step in self._steps for batch in step.batches)
        counts = sum_over_ranks(torch.stack([correct, torch.full_like(correct, images)])).tolist()
        skipped = torch.stack([step.skipped for step in self._steps])
        rows = [tensor.tolist() for tensor in (losses, skipped, own_finite)]
        now = time.perf_counter()
        window = Window(
            first_step=self._first_step,
            losses=tuple(rows[0]),
            lrs=tuple(self._lrs),
            images=counts[1],
            correct=counts[0],
            seconds=now - self._began,
            timed=timed,
            bad=tuple(map(_bad_step, self._steps, rows[1], rows[2])),
            request=request,
        )
        return window, now


def _bad_step(step: _Step, skipped: bool, own_finite: bool) -> BadStep | None:
    if not skipped:
        return None
    return BadStep(not own_finite, tuple(sample for batch in step.batches for sample in batch.tolist()))


def _step(
    training: Training,
    batches: list[Batch],
    *,
    job_images: int,
    epoch: int,
    step: int,
    prepare: Callable[[Batch], Tensor],
) -> _Step:
    """One optimizer step. Every one of the job's images weighs the same, though ranks may differ in their numbers."""
    config, parallel, precision = training.config, training.parallel, training.precision
    total = torch.zeros((), device=training.device)
    correct = torch.zeros((), dtype=torch.int64, device=training.device)
    training.statistics.keep()
    training.optimizer.zero_grad()
    parts = [part for batch in batches for part in _parts(batch, training.micro_batch)]
    for number, part in enumerate(parts):
        # A part that is done is progress, where a step takes minutes.
        training.watchdog.at(PEERS, epoch=epoch, step=step, part=number)
        # Drop-path and dropout of this part depend on where it stands in the run, not on what came before.
        training.runtime.seed(key(config.seed, "layers", epoch, step, number, training.rank))
        inputs, targets = mix(
            prepare(part),
            part.labels,
            mixup=config.mixup,
            cutmix=config.cutmix,
            seed=config.seed,
            epoch=epoch,
            step=step * len(parts) + number,
            rank=training.rank,
        )
        with _gradient_exchange(parallel, wanted=number + 1 == len(parts)):
            with precision.forward():
                outputs = parallel(inputs)
            mean = training_loss(outputs, targets, smoothing=config.label_smoothing, aux_weight=config.aux_weight)
            loss = mean * (len(part.labels) * training.world_size / job_images)
            precision.backward(loss, training.optimizer)
        total += loss.detach()
        correct += correct_top_k(main_logits(outputs).detach(), part.labels, (1,))[0]
        training.heartbeat.write(epoch=epoch, step=step, part=number + 1, parts=len(parts))
    skipped = precision.step(
        training.optimizer, list(training.network.parameters()), clip_norm=config.clip_norm, loss=total
    )
    # The forward pass has already put what is not finite into the statistics.
    training.statistics.undo(skipped)
    if training.ema is not None:
        training.ema.update(training.network)
    return _Step(total, correct, skipped, [batch.indices for batch in batches])


def _parts(batch: Batch, micro_batch: int) -> list[Batch]:
    """The batch in the fewest parts of at most `micro_batch` images, as equal as can be."""
    count = -(-len(batch.labels) // micro_batch)
    return [Batch(*columns) for columns in zip(*(column.tensor_split(count) for column in batch), strict=True)]


def _gradient_exchange(parallel: nn.Module, *, wanted: bool) -> AbstractContextManager[None]:
    """Ranks exchange gradients only in the last part of an accumulated step."""
    if wanted or not isinstance(parallel, nn.parallel.DistributedDataParallel):
        return nullcontext()
    return parallel.no_sync()
