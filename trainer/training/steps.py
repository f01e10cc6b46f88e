"""Training as small functions: steps over batches, and the host does not wait for the device in between.

Device values (losses, counts) are collected as tensors and read once per log interval: a read waits for the whole queue
of an accelerator.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.data.augment import mix
from trainer.data.bad_images import BadImages
from trainer.data.loader import ImageBatch, network_input
from trainer.data.sampler import EpochPlan
from trainer.devices.device import Device
from trainer.distributed.batch_norm import BatchStatistics
from trainer.distributed.process_group import any_rank, sum_over_ranks
from trainer.distributed.state_hash import hash_state
from trainer.distributed.stop_requests import Request, StopRequests
from trainer.distributed.watchdog import Watchdog
from trainer.model.loss import Targets, correct_top_k, main_logits, training_loss
from trainer.model.pnasnet import PNASNet5
from trainer.records.proof_record import FoundProof
from trainer.records.run_records import Heartbeat
from trainer.seeds import derive_seed
from trainer.shared.config import TrainConfig
from trainer.training.capture import CapturedStep, Function, Input
from trainer.training.comparison import Comparison, StateComparison, split_hashes
from trainer.training.ema import Ema
from trainer.training.optimizer import set_learning_rate
from trainer.training.precision import Precision
from trainer.training.profiling import StepProfiler
from trainer.training.schedule import completed_fraction, learning_rate
from trainer.training.time_split import COMPUTE, PARTS, RankTimes, StepClock

PEERS = "the device or its peers"
"""The activity of a rank that waits for work under way."""


@dataclass
class Training:
    """The parts of a run that live as long as it does."""

    config: TrainConfig
    """With the settings of its weights."""
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
    clock: StepClock
    statistics: BatchStatistics
    """Of the batch norms of `network`."""
    group: dist.ProcessGroup | None
    """The group of the ranks' hosts; None for a single process."""
    requests: StopRequests
    watchdog: Watchdog
    comparison: StateComparison
    bad_images: BadImages
    proof: FoundProof
    """What `prove` has shown about the device."""
    captured: CapturedStep | None = None
    """The device's graphs of the steps; None for eager steps."""
    bad_paths: set[str] = field(default_factory=set)
    """Of all ranks, since this process started."""

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The network's parameters by name. No step replaces one, so that the thousands need no second search."""
        return dict(self.network.named_parameters())

    @cached_property
    def model_tensors(self) -> dict[str, Tensor]:
        """All tensors of the network, `model.*`, and of the average, `ema.*`; a step changes them in place."""
        models = {"model": self.network, **({} if self.ema is None else {"ema": self.ema.model})}
        return {
            f"{part}.{name}": tensor
            for part, model in models.items()
            for name, tensor in model.state_dict(keep_vars=True).items()
        }

    @property
    def evaluated(self) -> PNASNet5:
        """The model whose accuracy counts: the average if the run has one."""
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
class StepWindow:
    """Figures of the whole job over some consecutive steps; `losses` has one true (unscaled) loss per step."""

    first_step: int
    losses: tuple[float, ...]
    lrs: tuple[float, ...]
    images: int
    correct: int
    seconds: float
    timed: bool
    """False in the warm-up and where a profiler slowed steps down: the images/s figure leaves them out."""
    bad: tuple["BadStep | None", ...]
    """For each step, its faults if the update was left out because loss or gradient was not finite; else None."""
    request: Request
    """The request that all ranks agreed on after its last step."""
    comparisons: tuple[Comparison, ...] = ()
    """Of the ranks' states, after some of its steps."""
    results: tuple[int, ...] = ()
    """A hash of this rank's own logits of each step, if `StateComparison.keeps_results`."""
    times_before: RankTimes = field(default_factory=RankTimes)
    """Of the ranks, from the end of the window before the last one to the end of the last one."""


def train_steps(
    training: Training,
    batches: Iterator[ImageBatch],
    plan: EpochPlan,
    *,
    epoch: int,
    first_step: int,
    warmup_left: int,
    request_after: Callable[[int], Request] = lambda _steps: Request.NONE,
    lr_factor: float = 1.0,
    profiler: StepProfiler | None = None,
) -> Iterator[StepWindow]:
    """Take the optimizer steps of `plan`. Yield a window at each log interval, at a request, and at the end.

    Args:
        batches: this rank's, in the order of `plan`.
        first_step: the step of the epoch that the plan begins with, which is also the number of steps done.
        warmup_left: steps of this epoch that still belong to the warm-up, counted from the epoch's beginning.
        request_after: returns this rank's request after a number of steps of `plan`.
        profiler: takes the profiles that the ranks agree on.
    """
    config, steps = training.config, first_step + plan.steps
    results: list[_Step] = []
    began = time.perf_counter()
    training.parallel.train()
    for step in range(first_step, steps):
        # A user can withdraw a request whose profile has begun, and make another one before its end.
        if profiler is not None and training.requests.profile is not None and profiler.running is None:
            profiler.begin(training.requests.take_profile(), epoch=epoch, step=step)
        images = plan.positions(step - first_step)
        lr = lr_factor * learning_rate(config, epoch=epoch, images=images, planned=plan.end)
        set_learning_rate(training.optimizer, lr)
        training.network.set_progress(completed_fraction(config, epoch=epoch, images=images, planned=plan.end))
        training.clock.mark("host")
        with training.watchdog.waiting("data", epoch=epoch, step=step):
            taken = list(islice(batches, len(plan.batches(step - first_step, training.rank))))
        training.clock.mark("data")
        with training.watchdog.waiting(PEERS, epoch=epoch, step=step):
            results.append(_step(training, taken, job_images=len(images), epoch=epoch, step=step, lr=lr))
            training.comparison.after_step(epoch=epoch, step=step + 1)
            training.clock.mark(COMPUTE)
            # One step ahead: the answer is read after the step that it is for.
            own_request = request_after(step + 2 - first_step)
            training.clock.mark("host")
            request = training.requests.all_reduce_requests(own_request)
            training.clock.mark("peers")
            if profiler is not None and profiler.running is not None:
                profiler.end_step(last=step + 1 == steps)
            if not (request or (step + 1) % config.log_interval == 0 or step + 1 in (warmup_left, steps)):
                continue
            slowed = profiler is not None and profiler.take_window()
            timed = step >= warmup_left and not slowed
            window = _window(training, results, step + 1, began, timed=timed, request=request)
        # From the window's end: the time that its reader takes belongs to the run too.
        results, began = [], began + window.seconds
        yield window


@dataclass(frozen=True)
class _Step:
    """Learning rate; mean loss, correct answers, whether the update was left out, and this rank's batches.

    The tensors stay on the device until they are read.
    """

    lr: float
    loss: Tensor
    correct: Tensor
    skipped: Tensor
    batches: list[Tensor]
    """For each batch, the images' positions in the index."""
    result: Tensor | None
    """A hash of the logits, if the comparison of ranks needs it."""


def _window(
    training: Training, steps: list[_Step], end: int, began: float, *, timed: bool, request: Request
) -> StepWindow:
    """Return the steps before step `end` as a window over all ranks: two reductions, one wait for the device."""
    times = torch.zeros(training.world_size, len(PARTS), dtype=torch.int64)
    times[training.rank] = torch.tensor([round(1e6 * seconds) for seconds in training.clock.take_unsent()])
    own = torch.stack([step.loss for step in steps])
    own_finite = torch.isfinite(own)
    losses = sum_over_ranks(own) / training.world_size
    correct = torch.stack([step.correct for step in steps]).sum()
    images = sum(len(batch) for step in steps for batch in step.batches)
    places, hashes = training.comparison.take_pending()
    own_counts = torch.stack([correct, torch.full_like(correct, images)])
    # Times and hashes travel with the counts, so that they cost no reduction and no wait.
    counts = sum_over_ranks(torch.cat([own_counts, times.flatten().to(training.device), *hashes])).tolist()
    skipped = torch.stack([step.skipped for step in steps])
    results = [step.result for step in steps if step.result is not None]
    rows = [tensor.tolist() for tensor in (losses, skipped, own_finite)]
    training.clock.mark("peers" if training.world_size > 1 else COMPUTE)
    training.clock.end_window()
    return StepWindow(
        first_step=end - len(steps),
        losses=tuple(rows[0]),
        lrs=tuple(step.lr for step in steps),
        images=counts[1],
        correct=counts[0],
        seconds=time.perf_counter() - began,
        timed=timed,
        bad=tuple(map(_bad_step, steps, rows[1], rows[2])),
        request=request,
        comparisons=split_hashes(places, counts[2 + times.numel() :]),
        results=tuple(torch.stack(results).tolist()) if results else (),
        times_before=RankTimes.of_sums(counts[2 : 2 + times.numel()]),
    )


def _bad_step(step: _Step, skipped: bool, own_finite: bool) -> BadStep | None:
    if not skipped:
        return None
    return BadStep(not own_finite, tuple(sample for batch in step.batches for sample in batch.tolist()))


def _step(training: Training, batches: list[ImageBatch], *, job_images: int, epoch: int, step: int, lr: float) -> _Step:
    """Take one optimizer step. All images of the job weigh the same, even if ranks have different numbers of them."""
    config = training.config
    total = torch.zeros((), device=training.device)
    correct = torch.zeros((), dtype=torch.int64, device=training.device)
    result = torch.zeros_like(correct) if training.comparison.keeps_results else None
    training.statistics.snapshot()
    if training.captured is None:
        training.optimizer.zero_grad()
    else:
        training.captured.gradients.zero()
    parts = sum(_part_count(training, batch) for batch in batches)
    for number, (inputs, targets) in enumerate(_mixed_parts(training, batches, epoch=epoch, step=step)):
        # A finished part counts as progress: a step can take minutes.
        training.watchdog.at(PEERS, epoch=epoch, step=step, part=number)
        # Drop-path and dropout depend on the part's position in the run, not on earlier draws.
        training.runtime.seed(derive_seed(config.seed, "layers", epoch, step, number, training.rank))
        weight = len(targets.labels) * training.world_size / job_images
        with _gradient_exchange(training.parallel, last=number + 1 == parts):
            of_labels = (targets.labels, targets.other, targets.share, targets.other_share)
            loss, right, logits = _call(training, _compute_gradients, inputs, weight, *of_labels)
        # Captured steps exchange gradients after the last part.
        training.clock.mark("peers" if training.world_size > 1 and training.captured is None else COMPUTE)
        if result is not None:
            result += hash_state([logits])
        total += loss
        correct += right
        training.heartbeat.write(epoch=epoch, step=step, part=number + 1, parts=parts)
    skipped = _update(training, total)
    return _Step(lr, total, correct, skipped, [batch.indices for batch in batches], result)


def _call(training: Training, function: Function, *inputs: Input) -> tuple[Tensor, ...]:
    """Return the results of `function`, by a graph of the device if the run has captured steps."""
    if training.captured is None:
        return function(training, *inputs)
    return training.captured.call(function, training, *inputs)


def _compute_gradients(
    training: Training, inputs: Tensor, weight: float | Tensor, *of_labels: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Add the gradients of `weight` times the part's mean loss to the step's gradients; `of_labels` are of `Targets`.

    Returns:
        That loss, the number of correct answers, and the logits.
    """
    config, precision = training.config, training.precision
    targets = Targets(*of_labels)
    with precision.forward():
        outputs = training.parallel(inputs)
    mean = training_loss(outputs, targets, smoothing=config.label_smoothing, aux_weight=config.aux_weight)
    loss = mean * weight
    precision.backward(loss, training.optimizer)
    logits = main_logits(outputs).detach()
    return loss.detach(), correct_top_k(logits, targets.labels, (1,))[0], logits


def _update(training: Training, loss: Tensor) -> Tensor:
    """Update weights and average. Return a bool scalar, the same on all ranks: whether the update was left out."""
    captured = training.captured
    average_weight = None if training.ema is None else training.ema.next_weight()
    if captured is None:
        parameters = list(training.network.parameters())
        skipped = training.precision.step(
            training.optimizer, parameters, clip_norm=training.config.clip_norm, loss=loss
        )
        _finish_update(training, skipped, average_weight)
        return skipped
    captured.gradients.average()
    training.clock.mark("peers" if training.world_size > 1 else COMPUTE)
    (own,) = _call(training, _check_gradients, loss)
    # The graph's next replay overwrites its own result.
    skipped = any_rank(own).clone()
    _call(training, _update_weights, skipped, average_weight)
    return skipped


def _check_gradients(training: Training, loss: Tensor) -> tuple[Tensor]:
    parameters = list(training.network.parameters())
    return (training.precision.check(parameters, clip_norm=training.config.clip_norm, loss=loss),)


def _update_weights(training: Training, skipped: Tensor, average_weight: float | Tensor | None) -> tuple[()]:
    training.precision.update_weights(training.optimizer, skipped)
    _finish_update(training, skipped, average_weight)
    return ()


def _finish_update(training: Training, skipped: Tensor, average_weight: float | Tensor | None) -> None:
    # The forward pass has already put values that are not finite into the statistics.
    training.statistics.undo(skipped)
    if training.ema is not None and average_weight is not None:
        training.ema.update(training.network, average_weight)


def _mixed_parts(
    training: Training, batches: list[ImageBatch], *, epoch: int, step: int
) -> Iterator[tuple[Tensor, Targets]]:
    """Yield the network's inputs and targets of each batch in parts of at most `micro_batch` images.

    Mixing comes before the split: the mixture must not depend on the memory of the machine, and a part of one image has
    no neighbour to mix with.
    """
    config = training.config
    for number, batch in enumerate(batches):
        inputs, targets = mix(
            network_input(batch, config),
            batch.labels,
            mixup=config.mixup,
            cutmix=config.cutmix,
            seed=config.seed,
            epoch=epoch,
            step=step,
            batch=number,
            rank=training.rank,
        )
        count = _part_count(training, batch)
        yield from zip(inputs.tensor_split(count), targets.split(count), strict=True)


def _part_count(training: Training, batch: ImageBatch) -> int:
    """Return the fewest parts of at most `micro_batch` images; they are as equal in size as possible."""
    return -(-len(batch.labels) // training.micro_batch)


def _gradient_exchange(parallel: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Return a context in which ranks exchange gradients only if this is the last part of an accumulated step."""
    if last or not isinstance(parallel, nn.parallel.DistributedDataParallel):
        return nullcontext()
    return parallel.no_sync()
