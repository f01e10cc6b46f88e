"""The weights that a run starts from: their classes are matched with the folders, and the log says what was found."""

import dataclasses
from collections.abc import Set

import numpy as np

from trainer.data.index import Datasets
from trainer.model.pnasnet import PNASNet5
from trainer.model.weight_classes import match_classes, with_rows
from trainer.model.weight_files import Weights
from trainer.model.weights import has_same_aux_head, weight_warnings
from trainer.records.run_records import say
from trainer.shared.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class StartWeights:
    """Weights and images with the same classes, in the same order.

    Attributes:
        new_classifier: the network keeps its own random classifier.
    """

    weights: Weights
    datasets: Datasets
    new_classifier: bool


def fit_classes(weights: Weights, datasets: Datasets, config: TrainConfig) -> StartWeights:
    """Bring the classes of weights and images together.

    In training, the weights' classifier is put in the folders' order. In an evaluation the network stays as it was
    trained, with all its classes, and the labels are put in its order.

    Raises:
        UsageError: they do not fit, and no option decides.
    """
    folders, val = datasets.classes, datasets.val
    used = np.unique(val.labels) if config.mode == "eval" else np.arange(len(folders))
    rows = match_classes(weights, folders, used.tolist(), config)
    if rows is None:
        return StartWeights(weights, datasets, new_classifier=True)
    if config.mode != "eval":
        return StartWeights(with_rows(weights, rows, folders), datasets, new_classifier=False)
    labels = np.array(rows, dtype=np.int64)[val.labels]
    classes = folders if weights.classes is None or config.match_classes == "order" else weights.classes
    relabelled = dataclasses.replace(val, classes=classes, labels=labels)
    return StartWeights(weights, dataclasses.replace(datasets, val=relabelled), new_classifier=False)


def say_weights(start: StartWeights, config: TrainConfig, network: PNASNet5, *, user_set: Set[str]) -> None:
    """Print whose weights they are, what tells it, and whether their classifier and auxiliary head are used.

    Args:
        user_set: the settings that do not come from the weights or a default.
    """
    weights = start.weights
    aux_head = "kept" if has_same_aux_head(network, weights) else "new"
    matched = "order" if weights.classes is None else config.match_classes
    say(
        "weights",
        source=weights.source,
        told_by=weights.evidence,
        model=weights.model,
        classes=weights.num_classes,
        classifier="new" if start.new_classifier else "kept",
        matched_by=None if start.new_classifier else matched,
        aux_head=aux_head if network.aux is not None and config.mode != "eval" else None,
    )
    for text in weight_warnings(config, weights, user_set=user_set):
        say("warning", text=text)
