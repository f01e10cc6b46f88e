"""`python -m trainer predict`: the most probable classes of images, by weights of a run or published ones."""

import itertools
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from cyclopts.validators import Number

from trainer.commands import AsJson
from trainer.commands.weights import FROM_WEIGHTS, ClassNames, ImagePreparation, WeightsPath, open_classifier
from trainer.data.tree import describe_left_out, read_class
from trainer.shared.container import usable_processors
from trainer.shared.documents import document, json_text
from trainer.shared.durations import count
from trainer.shared.errors import TrainerError, UsageError
from trainer.shared.files import NOT_REGULAR, reading
from trainer.shared.program import TRAINER
from trainer.shared.text import visible

if TYPE_CHECKING:
    from trainer.inference.classifier import Classifier

_BATCH = 16

_EXAMPLES = f"""\
Examples:
  {TRAINER} predict --weights output/r1 photo.jpg holidays/
  find . -name '*.png' | {TRAINER} predict --weights best.safetensors -"""

predict_app = App(name="predict", help_epilogue=_EXAMPLES)


@predict_app.default
def predict(
    *images: Annotated[Path, Parameter(allow_leading_hyphen=True)],
    weights: WeightsPath,
    top: Annotated[int, Parameter(converter=count, validator=Number(gte=1))] = 5,
    class_names: ClassNames = None,
    preparation: ImagePreparation = FROM_WEIGHTS,
    as_json: AsJson = False,
) -> None:
    """Show the most probable classes of images, prepared as in the evaluation of the weights, on the CPU.

    Exit code 1 if an image cannot be read, or gets no finite probabilities; the others are shown.

    Parameters
    ----------
    images
        Image files, folders of images, or - for a list of files on standard input, one per line.
    top
        Number of classes per image.
    """
    paths = list(_image_files(images))
    classifier = open_classifier(weights, preparation, class_names)
    rows, refused = [], 0
    for row in _predictions(classifier, paths, min(top, len(classifier.classes))):
        refused += row["error"] is not None
        if as_json:
            rows.append(row)
        else:
            print(f"{visible(row['image'])}  {visible(_words(row))}", flush=True)
    if as_json:
        print(json_text(document("PredictionList", weights=str(weights), items=rows)))
    if refused:
        error = TrainerError(f"{refused:,} of {len(paths):,} images could not be classified; their lines say why")
        raise error.after_document(as_json)


def _image_files(images: Sequence[Path]) -> Iterator[Path]:
    """Yield the files that the arguments name.

    Raises:
        UsageError: no image is named, a file or folder does not exist, or one is a pipe.
    """
    if not images:
        raise UsageError("predict needs images: files, folders, or - for a list of files on standard input")
    for path in images:
        if str(path) == "-":
            yield from _listed_images(sys.stdin)
        elif path.is_dir():
            yield from _images_below(path)
        elif path.is_file():
            yield path
        elif path.exists():
            raise UsageError(f"{path}: {NOT_REGULAR}; give a file")
        else:
            raise UsageError(f"{path}: no such file or folder")


def _listed_images(lines: Iterable[str]) -> list[Path]:
    names = [line.rstrip("\r\n") for line in lines if line.strip()]  # a list from Windows has both
    if not names:
        raise UsageError("the list on standard input is empty; give one file per line")
    if any("\0" in name for name in names):
        raise UsageError("the list on standard input has NUL characters; give one file per line")
    return [Path(name) for name in names]


def _images_below(folder: Path) -> list[Path]:
    with reading(folder):
        tree = read_class(folder)
    left_out = describe_left_out(folder, tree.left_out)
    if left_out:
        print(visible(left_out), file=sys.stderr)
    if not tree.images[0]:
        raise UsageError(f"{folder}: no images in this folder")
    return [folder / os.fsdecode(name) for name in tree.images[0]]


def _predictions(classifier: "Classifier", paths: Iterable[Path], top: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each image: its most probable classes, or why it cannot be classified."""
    remaining = iter(paths)
    with ThreadPoolExecutor(usable_processors()) as pool:
        while batch := list(itertools.islice(remaining, _BATCH)):
            crops = list(pool.map(classifier.read_crop, batch))
            readable = [crop for crop in crops if not isinstance(crop, str)]
            results = iter(classifier.crop_probabilities(readable).tolist() if readable else ())
            for path, crop in zip(batch, crops, strict=True):
                if isinstance(crop, str):
                    yield {"image": str(path), "classes": [], "error": crop}
                elif not all(map(math.isfinite, probabilities := next(results))):
                    yield {"image": str(path), "classes": [], "error": "its probabilities are not finite numbers"}
                else:
                    best = _best(probabilities, classifier.classes, top)
                    yield {"image": str(path), "classes": best, "error": None}


def _best(probabilities: Sequence[float], names: Sequence[str], top: int) -> list[dict[str, Any]]:
    order = sorted(range(len(names)), key=lambda number: -probabilities[number])[:top]
    return [{"index": n, "name": names[n], "probability": probabilities[n]} for n in order]


def _words(row: dict[str, Any]) -> str:
    if row["error"] is not None:
        return f"error: {row['error']}"
    return ", ".join(f"{best['name']} {100 * best['probability']:.2f} %" for best in row["classes"])
