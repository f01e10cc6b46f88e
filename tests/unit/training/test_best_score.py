"""The best score of a run is of a network that answers."""

import math

import pytest

from trainer.training.evaluation import Evaluation
from trainer.training.progress import TrainingProgress

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([(10, 2.0), (30, 1.0), (30, 0.5), (20, 0.1)], [True, True, False, False]),
        ([(10, NAN), (5, 2.0), (90, NAN), (90, INF), (6, 1.0)], [False, True, False, False, True]),
        ([(0, NAN), (0, NAN)], [False, False]),
    ],
)
def test_a_score_with_a_loss_that_is_not_finite_is_never_the_best(
    scores: list[tuple[float, float]], best: list[bool]
) -> None:
    progress = TrainingProgress()
    evaluations = [Evaluation(top1=top1, top5=100, loss=loss, images=1) for top1, loss in scores]
    assert [progress.end_epoch(evaluation) for evaluation in evaluations] == best
    assert progress.last is evaluations[-1]
    assert progress.epoch == len(scores)
    assert progress.best_epoch == max((epoch for epoch, is_best in enumerate(best) if is_best), default=None)


def test_a_best_score_of_an_earlier_version_with_nan_is_replaced() -> None:
    progress = TrainingProgress(best=Evaluation(top1=90, top5=100, loss=NAN, images=1))
    progress = TrainingProgress.from_json(progress.to_json())
    assert progress.end_epoch(Evaluation(top1=10, top5=100, loss=1.0, images=1))
