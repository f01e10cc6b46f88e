"""The rows of a classifier and the class folders of the images have the same meaning, or the user decides."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainer.data.index import Datasets, ImageIndex
from trainer.model.pnasnet import TINY, PNASNet5
from trainer.model.weight_files import DataConfig, Weights, import_weights
from trainer.model.weights import describe_weights, write_weights
from trainer.shared.config import TrainConfig
from trainer.shared.errors import UsageError
from trainer.worker.start_weights import StartWeights, fit_classes, say_weights

ABC = ("a", "b", "c")
NETWORK = PNASNet5(TINY, 3)


def _weights(names: tuple[str, ...] | None, count: int = 3) -> Weights:
    """Return weights whose row of a class holds the number of its row."""
    rows = torch.arange(float(count))
    state = {"last_linear.weight": rows[:, None], "last_linear.bias": rows, "aux.classifier.bias": rows, "x": rows}
    return Weights(Path("w"), state, "pnas", "its description", "pnasnet5tiny", "exact", DataConfig(), names)


def _images(classes: tuple[str, ...], used: str | None = None) -> Datasets:
    """Return two images of each class folder named in `used`, or of each class."""
    labels = np.repeat([label for label, name in enumerate(classes) if used is None or name in used], 2)
    paths = np.array([b"%d.png" % number for number in range(len(labels))])
    index = ImageIndex(Path("val"), classes, paths, labels.astype(np.int64))
    return Datasets(dataclasses.replace(index, root=Path("train")), index, "")


def _fit(weights: Weights, datasets: Datasets, mode: Any, **options: Any) -> StartWeights:
    return fit_classes(weights, datasets, TrainConfig(mode=mode, weights=Path("w"), **options))


@pytest.mark.parametrize(
    ("names", "folders", "used", "options", "labels"),
    [
        (ABC, ABC, None, {}, [0, 1, 2]),
        (("c", "a", "b"), ABC, None, {}, [1, 2, 0]),
        (ABC, ("a", "c"), None, {}, [0, 2]),
        (ABC, ("a", "b", "z"), "ab", {}, [0, 1]),
        (None, ABC, None, {}, [0, 1, 2]),
        (None, ABC, "c", {}, [2]),
        (ABC, ("x", "y", "z"), None, {"match_classes": "order"}, [0, 1, 2]),
        (("c", "a", "b"), ABC, None, {"match_classes": "order"}, [0, 1, 2]),
    ],
)
def test_an_evaluation_gives_each_folder_the_row_of_its_class(
    names: Any, folders: tuple[str, ...], used: Any, options: dict[str, str], labels: list[int]
) -> None:
    start = _fit(_weights(names), _images(folders, used), "eval", **options)
    assert start.datasets.val.labels.tolist() == np.repeat(labels, 2).tolist()
    assert len(start.datasets.classes) == start.weights.num_classes == 3
    assert not start.new_classifier


@pytest.mark.parametrize(
    ("names", "folders", "options", "rows"),
    [
        (ABC, ABC, {}, [0, 1, 2]),
        (("c", "a", "b"), ABC, {}, [1, 2, 0]),
        (ABC, ("a", "c"), {}, [0, 2]),
        (None, ABC, {}, [0, 1, 2]),
        (ABC, ("x", "y", "z"), {"match_classes": "order"}, [0, 1, 2]),
        (ABC, ("x", "y", "z"), {"match_classes": "new"}, None),
        (ABC, ABC, {"match_classes": "new"}, None),
        (ABC, ("a", "z"), {}, None),
        (None, ("a", "z"), {}, None),
    ],
)
def test_finetuning_keeps_the_rows_of_known_classes_or_takes_a_new_classifier(
    names: Any, folders: tuple[str, ...], options: dict[str, str], rows: list[int] | None
) -> None:
    start = _fit(_weights(names), _images(folders), "finetune", **options)
    assert start.datasets.classes == folders
    assert start.new_classifier == (rows is None)
    if rows is not None:
        state = start.weights.state_dict
        assert state["last_linear.weight"].flatten().tolist() == rows
        assert state["last_linear.bias"].tolist() == state["aux.classifier.bias"].tolist() == rows
        assert state["x"].tolist() == [0, 1, 2], "only classifiers have a row for each class"


@pytest.mark.parametrize(
    ("names", "folders", "mode", "options", "message"),
    [
        (ABC, ("x", "y", "z"), "eval", {}, r"do not know class x, y, z; their 3 classes are a, b, c; rename .* order"),
        (ABC, ("x", "y", "z"), "finetune", {}, "do not know class x, y, z.* --match-classes new for a new classifier"),
        (ABC, ("x", "y", "z"), "full", {}, "do not know class x, y, z.* --match-classes new"),
        (ABC, ("a", "x"), "eval", {}, "do not know class x; their 3 classes are a, b, c; rename the folders$"),
        (
            None,
            ("a", "b"),
            "eval",
            {},
            "made for 3 classes, but the images have 2; .* add train/",
        ),
        (
            ABC,
            ("a", "b"),
            "eval",
            {"match_classes": "order"},
            "but the images have 2.*classes name",
        ),
        (None, ("a", "b"), "full", {}, "made for 3 classes, but the images have 2.*classes new"),
        (ABC, ("a", "b"), "finetune", {"match_classes": "order"}, "classes name.*, or give --match-classes new"),
    ],
)
def test_classes_that_nothing_matches_are_refused_with_the_option_that_decides(
    names: Any, folders: tuple[str, ...], mode: str, options: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        _fit(_weights(names), _images(folders), mode, **options)


def test_published_weights_of_a_thousand_classes_know_imagenets_folders(tmp_path: Path) -> None:
    torch.save(PNASNet5(TINY, 1000).state_dict(), tmp_path / "timm.pth")
    weights = import_weights(tmp_path / "timm.pth")
    assert weights.classes is not None
    assert len(set(weights.classes)) == 1000
    assert list(weights.classes) == sorted(weights.classes)
    some = _images(("n01440764", "n02102040", "n15075141"))
    labels = _fit(weights, some, "eval").datasets.val.labels
    # The last row is toilet tissue's, and row 217 the English springer's.
    assert labels.tolist() == [0, 0, 217, 217, 999, 999]
    numbers = _images(tuple(sorted(map(str, range(1000)))))
    with pytest.raises(UsageError, match=r"do not know class 0, 1, 10 and 997 more.* give --match-classes order if"):
        _fit(weights, numbers, "eval")


def test_a_weight_file_keeps_the_names_of_its_classes(tmp_path: Path) -> None:
    model, names = PNASNet5(TINY, 3), ("n01", 'quote " and \n', b"\xff".decode(errors="surrogateescape"))
    write_weights(tmp_path / "w.safetensors", model.state_dict(), describe_weights(model, TrainConfig(), names))
    assert import_weights(tmp_path / "w.safetensors").classes == names


def test_the_log_says_whose_weights_they_are_and_what_becomes_of_the_classifier(
    capsys: pytest.CaptureFixture[str],
) -> None:
    say_weights(
        _fit(_weights(ABC), _images(("a", "c")), "finetune"), TrainConfig(normalize="none"), NETWORK, user_set=set()
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        'weights source=pnas told_by="its description" model=pnasnet5tiny classes=2 classifier=kept matched_by=name'
    )
    assert "normalize none (theirs: half)" in lines[1]
    say_weights(
        _fit(_weights(None), _images(("a", "c")), "finetune"), TrainConfig(normalize="half"), NETWORK, user_set=set()
    )
    assert capsys.readouterr().out.splitlines()[0].partition("classes=")[2].startswith("3 classifier=new time=")


@pytest.mark.parametrize(
    ("aux", "own", "mode", "shown"),
    [
        (None, None, "finetune", None),
        ("seed", None, "finetune", None),
        ("seed", "seed", "eval", None),
        ("seed", "seed", "finetune", "kept"),
        ("seed", "tf", "finetune", "new"),
        (None, "seed", "finetune", "new"),
    ],
)
def test_the_log_says_whether_the_auxiliary_head_is_kept(
    capsys: pytest.CaptureFixture[str], aux: Any, own: Any, mode: Any, *, shown: str | None
) -> None:
    state = PNASNet5(TINY, 3, aux).state_dict()
    start = _fit(dataclasses.replace(_weights(ABC), state_dict=state), _images(("a", "c")), mode)
    say_weights(start, TrainConfig(mode=mode, weights=Path("w")), PNASNet5(TINY, 2, own), user_set=set())
    line = capsys.readouterr().out.splitlines()[0]
    assert line.partition("aux_head=")[2].partition(" ")[0] == (shown or "")


@pytest.mark.parametrize(
    ("weights", "user_set", "is_warned"),
    [
        ({"source": "timm"}, set(), True),
        ({"source": "timm"}, {"padding", "normalize"}, False),
        ({"source": "timm", "model": "pnasnet5large"}, set(), True),
        ({"source": "timm", "model": "pnasnet5large", "count": 1000}, set(), False),
        ({"source": "cadene", "model": "pnasnet5large", "count": 1000}, set(), False),
        ({"source": "pnas"}, set(), False),
    ],
)
def test_a_source_that_published_no_such_network_is_called_an_assumption(
    capsys: pytest.CaptureFixture[str], weights: dict[str, Any], user_set: set[str], *, is_warned: bool
) -> None:
    count = weights.pop("count", 3)
    names = tuple(f"{label:04}" for label in range(count))
    start = _fit(dataclasses.replace(_weights(None, count), **weights), _images(names), "eval")
    say_weights(start, TrainConfig(normalize="half"), NETWORK, user_set=user_set)
    assert ("taken for timm's" in capsys.readouterr().out) == is_warned
