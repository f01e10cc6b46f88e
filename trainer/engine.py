"""Training and evaluation as small functions: steps over batches, counts over images, no host synchronisation between.

Device values (losses, counts) are collected as tensors and read once per log interval: reading one waits for the whole
queue of an accelerator.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from trainer.config import TrainConfig
from trainer.data.augment import mix
from trainer.data.loader import Batch
from trainer.devices import Device
from trainer.distributed import sum_over_ranks
from trainer.ema import Ema
from trainer.errors import TrainerError
from trainer.loss import correct_top_k, cross_entropy, main_logits, training_loss
from trainer.model import PNASNet5
from trainer.precision import Precision
from trainer.pulse import Pulse
from trainer.randomness import key
from trainer.schedule import learning_rate, progress


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
    pulse: Pulse

    @property
    def evaluated(self) -> PNASNet5:
        """The model whose accuracy is the run's: the average where there is one."""
        return self.network if self.ema is None else self.ema.model


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


@dataclass(frozen=True)
class Evaluation:
    """Accuracy in percent over exactly `images` images, and their mean cross entropy."""

    top1: float
    top5: float
    loss: float
    images: int


def train_steps(
    training: Training,
    batches: Iterator[Batch],
    *,
    epoch: int,
    steps: int,
    warmup_left: int,
    prepare: Callable[[Batch], Tensor],
) -> Iterator[Window]:
    """Take `steps` optimizer steps; yield a window at each log interval, at the end of the warm-up and at the end.

    Args:
        batches: `accumulate` of them make a step.
        warmup_left: steps of this epoch that still belong to the warm-up.
        prepare: turns a batch's uint8 images into the network's input.
    """
    config = training.config
    losses: list[Tensor] = []
    lrs: list[float] = []
    correct = torch.zeros((), dtype=torch.int64, device=training.device)
    images, first, clock = 0, 0, time.perf_counter()
    training.parallel.train()
    for step in range(steps):
        lrs.append(learning_rate(config, epoch=epoch, step=step, steps=steps))
        _begin_step(training, epoch=epoch, step=step, steps=steps, lr=lrs[-1])
        loss, hits, seen = _step(training, list(islice(batches, config.accumulate)), epoch, step, prepare)
        losses.append(loss)
        correct += hits
        images += seen
        if (step + 1) % config.log_interval == 0 or step + 1 in (warmup_left, steps):
            job_losses, job_correct, job_images = _over_ranks(training, losses, correct, images)
            now = time.perf_counter()
            yield Window(first, job_losses, tuple(lrs), job_images, job_correct, now - clock, timed=step >= warmup_left)
            # From `now`: what the window's reader does until it wants the next one is the run's time too.
            losses, lrs, images, first, clock = [], [], 0, step + 1, now
            correct.zero_()


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterator[Batch],
    *,
    expected: int,
    precision: Precision,
    prepare: Callable[[Batch], Tensor],
    pulse: Pulse,
) -> Evaluation:
    """Score `model` on every image once: ranks add up counts, never averages.

    Args:
        batches: this rank's share of the images; a rank may have none.
        expected: images in the whole data set.

    Raises:
        TrainerError: another number of images was counted, so that no figure can be given.
    """
    device = next(model.parameters()).device
    counts = torch.zeros(3, dtype=torch.int64, device=device)
    loss_sum = torch.zeros((), dtype=torch.float32, device=device)
    seen = 0
    model.eval()
    for batch in batches:
        with precision.forward():
            logits = main_logits(model(prepare(batch)))
        counts[:2] += correct_top_k(logits, batch.labels, (1, 5))
        loss_sum += cross_entropy(logits, batch.labels, 0.0) * len(batch.labels)
        seen += len(batch.labels)
        pulse.beat(evaluated=seen, images=expected)
    counts[2] = seen
    top1, top5, images = sum_over_ranks(counts).tolist()
    if images != expected:
        raise TrainerError(f"evaluation counted {images} images, but the data set has {expected}: no figure is given")
    return Evaluation(100 * top1 / images, 100 * top5 / images, float(sum_over_ranks(loss_sum)) / images, images)


def parameter_groups(model: nn.Module, *, weight_decay: float, decay_all: bool) -> list[dict[str, object]]:
    """Parameters for the optimizer; without `decay_all`, batch norm and biases (one dimension) are not decayed."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if decay_all:
        return [{"params": parameters, "weight_decay": weight_decay}]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _begin_step(training: Training, *, epoch: int, step: int, steps: int, lr: float) -> None:
    for group in training.optimizer.param_groups:
        group["lr"] = lr
    training.network.set_progress(progress(training.config, epoch=epoch, step=step, steps=steps))


def _step(
    training: Training, batches: list[Batch], epoch: int, step: int, prepare: Callable[[Batch], Tensor]
) -> tuple[Tensor, Tensor, int]:
    """One optimizer step: its mean loss and count of right answers (device scalars), and its number of images."""
    config, parallel, precision = training.config, training.parallel, training.precision
    images = sum(len(batch.labels) for batch in batches)
    total = torch.zeros((), device=training.device)
    correct = torch.zeros((), dtype=torch.int64, device=training.device)
    training.optimizer.zero_grad()
    parts = [part for batch in batches for part in _parts(batch, training.micro_batch)]
    for number, part in enumerate(parts):
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
            loss = mean * (len(part.labels) / images)
            precision.backward(loss, training.optimizer)
        total += loss.detach()
        correct += correct_top_k(main_logits(outputs).detach(), part.labels, (1,))[0]
        training.pulse.beat(epoch=epoch, step=step, part=number + 1, parts=len(parts))
    training.precision.step(training.optimizer, list(training.network.parameters()), config.clip_norm)
    if training.ema is not None:
        training.ema.update(training.network)
    return total, correct, images


def _parts(batch: Batch, micro_batch: int) -> list[Batch]:
    """The batch in the fewest parts of at most `micro_batch` images, as equal as can be."""
    count = -(-len(batch.labels) // micro_batch)
    return [Batch(*columns) for columns in zip(*(column.tensor_split(count) for column in batch), strict=True)]


def _gradient_exchange(parallel: nn.Module, *, wanted: bool) -> AbstractContextManager[None]:
    """Ranks exchange gradients only in the last part of an accumulated step."""
    if wanted or not isinstance(parallel, nn.parallel.DistributedDataParallel):
        return nullcontext()
    return parallel.no_sync()


def _over_ranks(
    training: Training, losses: list[Tensor], correct: Tensor, images: int
) -> tuple[tuple[float, ...], int, int]:
    """The job's mean loss of each step, its right answers and images: two reductions and two reads per window."""
    mean_losses = sum_over_ranks(torch.stack(losses)) / training.world_size
    counts = sum_over_ranks(torch.stack([correct, torch.full_like(correct, images)])).tolist()
    return tuple(mean_losses.tolist()), counts[0], counts[1]
