"""Accuracy over every image of a split exactly once, for any number of ranks; a request to stop ends it early.

Ranks add up counts, never averages, so that a smaller or empty share needs no special case.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from trainer.data.loader import ImageBatch, network_input
from trainer.distributed.process_group import sum_over_ranks
from trainer.distributed.stop_requests import Request
from trainer.model.folding import folded
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
    after_round: Callable[[int, int], None] = lambda _done, _rounds: None,
) -> Evaluation | None:
    """Score the evaluated model. Return None if the ranks agreed to stop before the end.

    An image that cannot be read counts as answered wrongly, and is left out of the mean loss.

    Args:
        batches: this rank's share of the images, which may be empty.
        expected: images in the whole data set.
        epoch: for the lines that show where the run is.
        after_round: called with the number of rounds that are done, each with a batch of each rank, and of all rounds.

    Raises:
        TrainerError: another number of images was counted, so that the figure would be wrong.
    """
    # The sums stay on the device until they are read: correct in the first place, correct among five, and losses.
    correct = torch.zeros(2, dtype=torch.int64, device=training.device)
    loss = torch.zeros((), dtype=torch.float32, device=training.device)
    scored = 0
    network = folded(training.evaluated)
    largest_share = -(-expected // training.world_size)
    rounds = -(-largest_share // training.config.batch_size)
    # All ranks do the same number of rounds, with or without a batch; the last round finds no batch left.
    for number in range(rounds + 1):
        position = {"epoch": epoch, "evaluation_round": number}
        with training.watchdog.waiting("data", **position):
            batch = next(batches, None)
        with training.watchdog.waiting(PEERS, **position):
            if batch is not None:
                with training.precision.forward():
                    logits = main_logits(network(network_input(batch, training.config)))
                correct += correct_top_k(logits, batch.labels, (1, 5))
                loss += cross_entropy(logits, batch.labels, 0.0) * len(batch.labels)
                scored += len(batch.labels)
                training.heartbeat.write(epoch=epoch, evaluated=scored, images=expected)
            if training.requests.all_reduce_requests(Request.NONE) is Request.STOP and number + 1 < rounds:
                return None
        if number < rounds:
            after_round(number + 1, rounds)
    with training.watchdog.waiting(PEERS, epoch=epoch, evaluation_round=rounds):
        seen = scored + training.bad_images.take_left_out()
        counts = sum_over_ranks(torch.cat([correct, correct.new_tensor([scored, seen])]))
        top1, top5, all_scored, images = counts.tolist()
        mean_loss = float(sum_over_ranks(loss)) / max(all_scored, 1)
    if images != expected:
        raise TrainerError(f"evaluation counted {images} images, but the data set has {expected}: no figure is given")
    return Evaluation(100 * top1 / images, 100 * top5 / images, mean_loss, images)
