"""Accuracy over every image of a split exactly once, however many ranks share it; broken off where a run has to stop.

Ranks add up counts, never averages: a share that is smaller, or empty, then needs no care.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.data.loader import Batch
from trainer.distributed.process_group import sum_over_ranks
from trainer.distributed.stop_requests import Request
from trainer.model.loss import correct_top_k, cross_entropy, main_logits
from trainer.shared.errors import TrainerError
from trainer.training.steps import PEERS, Training


@dataclass(frozen=True)
class Evaluation:
    """Accuracy in percent over exactly `images` images, and the mean cross entropy of those that could be read."""

    top1: float
    top5: float
    loss: float
    images: int


@torch.no_grad()
def evaluate(
    training: Training, batches: Iterator[Batch], *, expected: int, prepare: Callable[[Batch], Tensor], epoch: int = 0
) -> Evaluation | None:
    """Score the evaluated model; None if the ranks have agreed to stop before the end.

    An image that cannot be read counts as answered wrongly, and is not in the mean loss.

    Args:
        batches: this rank's share of the images; a rank may have none.
        expected: images in the whole data set.
        prepare: turns a batch's uint8 images into the network's input.
        epoch: for the lines that say where a run is.

    Raises:
        TrainerError: another number of images was counted, so that no figure can be given.
    """
    sums = _Sums(training.device)
    training.evaluated.eval()
    largest_share = -(-expected // training.world_size)
    rounds = -(-largest_share // training.config.batch_size)
    # All ranks go through as many, with or without a batch in them; a last one finds that nothing is left.
    for number in range(rounds + 1):
        where = {"epoch": epoch, "evaluation_round": number}
        with training.watchdog.waiting("data", **where):
            batch = next(batches, None)
        with training.watchdog.waiting(PEERS, **where):
            if batch is not None:
                _score(training, batch, sums, prepare)
                training.heartbeat.write(epoch=epoch, evaluated=sums.seen, images=expected)
            if training.requests.exchange(Request.NONE) is Request.STOP and number + 1 < rounds:
                return None
    with training.watchdog.waiting(PEERS, epoch=epoch, evaluation_round=rounds):
        return sums.total(expected, left_out=training.bad_images.left_out())


class _Sums:
    """Counts and losses on the device, until they are read."""

    def __init__(self, device: torch.device) -> None:
        self.counts = torch.zeros(4, dtype=torch.int64, device=device)
        """Right at the first, right among five, images scored, images in all."""
        self.loss = torch.zeros((), dtype=torch.float32, device=device)
        self.seen = 0

    def total(self, expected: int, *, left_out: int) -> Evaluation:
        """Over all ranks."""
        self.counts[2], self.counts[3] = self.seen, self.seen + left_out
        top1, top5, scored, images = sum_over_ranks(self.counts).tolist()
        loss = float(sum_over_ranks(self.loss))
        if images != expected:
            raise TrainerError(
                f"evaluation counted {images} images, but the data set has {expected}: no figure is given"
            )
        return Evaluation(100 * top1 / images, 100 * top5 / images, loss / max(scored, 1), images)


def _score(training: Training, batch: Batch, sums: _Sums, prepare: Callable[[Batch], Tensor]) -> None:
    with training.precision.forward():
        logits = main_logits(training.evaluated(prepare(batch)))
    sums.counts[:2] += correct_top_k(logits, batch.labels, (1, 5))
    sums.loss += cross_entropy(logits, batch.labels, 0.0) * len(batch.labels)
    sums.seen += len(batch.labels)
