"""The classes of weights and the class folders of the images: matched by name, or the user decides.

A label is a position among the sorted names of the class folders. The same images under other names, or a subset of the
folders, move the positions, and a network is then wrong about all its images without any error.
"""

import dataclasses
from collections.abc import Sequence

import torch

from trainer.model.weight_files import Weights
from trainer.model.weights import HEADS
from trainer.shared.config import TrainConfig
from trainer.shared.errors import UsageError
from trainer.shared.text import visible


def match_classes(
    weights: Weights, folders: Sequence[str], used: Sequence[int], config: TrainConfig
) -> tuple[int, ...] | None:
    """Return the row of the weights' classifier for each class folder; None if the network gets a new classifier.

    By name where the weights name their classes and know every folder. By position where they name none and have as
    many. `--match-classes` decides otherwise.

    Args:
        folders: the names of the class folders, in the order of their labels.
        used: the labels that images have. An unknown folder without images gets row 0, which no image uses.

    Raises:
        UsageError: some folders are unknown, or the numbers differ, and the option does not decide.
    """
    evaluates, rule = config.mode == "eval", config.match_classes
    same_number = len(folders) == weights.num_classes
    names = {name: row for row, name in enumerate(weights.classes or ())}
    unknown = [folders[label] for label in used if folders[label] not in names]
    if rule == "new":
        return None
    if same_number and (rule == "order" or weights.classes is None):
        return tuple(range(len(folders)))
    if rule == "name" and not unknown:
        return tuple(names.get(name, 0) for name in folders)
    if config.mode == "finetune" and not same_number and rule == "name":
        return None
    raise UsageError(f"weights {weights.path}: {_mismatch(weights, folders, unknown, rule, evaluates=evaluates)}")


def with_rows(weights: Weights, rows: Sequence[int], classes: Sequence[str]) -> Weights:
    """Return `weights` with these rows of their classifiers, in this order, as the rows of `classes`."""
    index = torch.tensor(rows)
    tensors = {name: tensor[index] if name.startswith(HEADS) else tensor for name, tensor in weights.state_dict.items()}
    return dataclasses.replace(weights, state_dict=tensors, classes=tuple(classes))


def _mismatch(weights: Weights, folders: Sequence[str], unknown: Sequence[str], rule: str, *, evaluates: bool) -> str:
    count = weights.num_classes
    new = "" if evaluates else ", or give --match-classes new for a new classifier"
    if rule == "order" or weights.classes is None:
        fault = f"made for {count} classes, but the images have {len(folders)}"
        names = "" if weights.classes is None else ", or match them by name (--match-classes name)"
        advice = f"give data with a folder for each class{names}"
        if weights.classes is None and evaluates:
            advice = "to evaluate on some of the classes, add train/ with a folder for each class, empty or not"
        return f"{fault}; {advice}{new}"
    some, known = _first(unknown), _first(weights.classes)
    orders = ", or give --match-classes order if the sorted names have the same meaning" * (len(folders) == count)
    return f"do not know class {some}; their {count} classes are {known}; rename the folders{orders}{new}"


def _first(names: Sequence[str]) -> str:
    return visible(", ".join(names[:3])) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
