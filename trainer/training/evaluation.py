"""Accuracy over every image of a split exactly once, for any number of ranks; a request to stop ends it early.

Ranks add up counts, never averages, so that a smaller or empty share needs no special case.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from trainer.data.loader import ImageBatch, network_input
from trainer.distributed.process_group import sum_over_ranks
from trainer.distributed.stop_requests import Request
from trainer.model.loss import correct_top_k, cross_entropy, main_logits
from trainer.shared.errors import TrainerError
from trainer.training.steps import PEERS, Training


@dataclass(frozen=True)
class Evaluation:
    """Accuracy in percent over exactly `images` images, and the mean cross entropy of the readable ones."""

    top1: float
    top5: float
    loss: float
    images: int


@torch.no_grad()
def evaluate(
    training: Training,
    batches: Iterator[ImageBatch],
    *,
    expected: int,
    epoch: int = 0,
) -> Evaluation | None:
    """Score the evaluated model. Return None if the ranks agreed to stop before the end.

    An image that cannot be read counts as answered wrongly, and is left out of the mean loss.

    Args:
        batches: this rank's share of the images, which may be empty.
        expected: images in the whole data set.
        epoch: for the lines that show where the run is.

    Raises:
        TrainerError: another number of images was counted, so that the figure would be wrong.
    """
    sums = _Sums(training.device)
    training.evaluated.eval()
    largest_share = -(-expected // training.world_size)
    rounds = -(-largest_share // training.config.batch_size)
    # All ranks do the same number of rounds, with or without a batch; the last round finds no batch left.
    for number in range(rounds + 1):
        position = {"epoch": epoch, "evaluation_round": number}
        with training.watchdog.waiting("data", **position):
            batch = next(batches, None)
        with training.watchdog.waiting(PEERS, **position):
            if batch is not None:
                _score(training, batch, sums)
                training.heartbeat.write(epoch=epoch, evaluated=sums.seen, images=expected)
            if training.requests.all_reduce_requests(Request.NONE) is Request.STOP and number + 1 < rounds:
                return None
    with training.watchdog.waiting(PEERS, epoch=epoch, evaluation_round=rounds):
        return sums.total(expected, left_out=training.bad_images.take_left_out())


class _Sums:
    """Counts and losses, which stay on the device until they are read."""

    def __init__(self, device: torch.device) -> None:
        self.counts = torch.zeros(4, dtype=torch.int64, device=device)
        """Correct in the first place, correct among five, images scored, images in all."""
        self.loss = torch.zeros((), dtype=torch.float32, device=device)
        self.seen = 0

    def total(self, expected: int, *, left_out: int) -> Evaluation:
        """Return the evaluation over all ranks."""
        self.counts[2], self.counts[3] = self.seen, self.seen + left_out
        top1, top5, scored, images = sum_over_ranks(self.counts).tolist()
        loss = float(sum_over_ranks(self.loss))
        if images != expected:
            raise TrainerError(
                f"evaluation counted {images} images, but the data set has {expected}: no figure is given"
            )
        return Evaluation(100 * top1 / images, 100 * top5 / images, loss / max(scored, 1), images)


def _score(training: Training, batch: ImageBatch, sums: _Sums) -> None:
    with training.precision.forward():
        logits = main_logits(training.evaluated(network_input(batch, training.config)))
    sums.counts[:2] += correct_top_k(logits, batch.labels, (1, 5))
    sums.loss += cross_entropy(logits, batch.labels, 0.0) * len(batch.labels)
    sums.seen += len(batch.labels)
