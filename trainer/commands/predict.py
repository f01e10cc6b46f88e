"""`python -m trainer predict`: the most probable classes of images, by weights of a run or published ones."""

import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from cyclopts.validators import Number

from trainer.commands import FROM_WEIGHTS, AsJson, ClassNames, ImagePreparation, WeightsPath
from trainer.data.tree import describe_left_out, read_class
from trainer.shared.documents import document, json_text
from trainer.shared.errors import TrainerError, UsageError
from trainer.shared.files import reading
from trainer.shared.text import visible

if TYPE_CHECKING:
    from trainer.inference.classifier import Classifier

_BATCH = 16

predict_app = App(name="predict", help="Show the most probable classes of images.")


@predict_app.default
def predict(
    *images: Annotated[Path, Parameter(allow_leading_hyphen=True)],
    weights: WeightsPath,
    top: Annotated[int, Parameter(validator=Number(gte=1))] = 5,
    class_names: ClassNames = None,
    preparation: ImagePreparation = FROM_WEIGHTS,
    as_json: AsJson = False,
) -> None:
    """Show the most probable classes of images, prepared as in the evaluation of the weights, on the CPU.

    For example:

        python -m trainer predict --weights output/r1 photo.jpg holidays/
        find . -name '*.png' | python -m trainer predict --weights best.safetensors -

    Exit code 1 if an image cannot be read; the others are shown.

    Parameters
    ----------
    images
        Image files, folders of images, or - for a list of files on standard input, one per line.
    top
        Number of classes per image.
    """
    paths = list(_image_files(images))
    from trainer.inference.classifier import load_classifier  # noqa: PLC0415  # it imports torch, slow for --help

    classifier = load_classifier(weights, preparation.settings(), class_names)
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
        error = TrainerError(f"{refused:,} of {len(paths):,} images cannot be read; the lines above say why")
        raise error.after_document(as_json)


def _image_files(images: Sequence[Path]) -> Iterator[Path]:
    """Yield the files that the arguments name.

    Raises:
        UsageError: no image is named, or a file or folder does not exist.
    """
    if not images:
        raise UsageError("predict needs images: files, folders, or - for a list of files on standard input")
    for path in images:
        if str(path) == "-":
            yield from (Path(line.rstrip("\n")) for line in sys.stdin if line.strip())
        elif path.is_dir():
            yield from _images_below(path)
        elif path.exists():
            yield path
        else:
            raise UsageError(f"{path}: no such file or folder")


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
    """Yield a row for each image: its most probable classes, or the reason why it cannot be read."""
    from trainer.data.decode import BadImageError, decode_image  # noqa: PLC0415  # it imports torch, slow for --help

    def decode(path: Path) -> Any:
        try:
            return decode_image(path)
        except BadImageError as error:
            return error

    remaining = iter(paths)
    with ThreadPoolExecutor() as pool:
        while batch := list(itertools.islice(remaining, _BATCH)):
            decoded = list(pool.map(decode, batch))
            readable = [image for image in decoded if not isinstance(image, BadImageError)]
            results = iter(classifier.probabilities(readable).tolist() if readable else ())
            for path, image in zip(batch, decoded, strict=True):
                if isinstance(image, BadImageError):
                    yield {"image": str(path), "classes": [], "error": image.reason}
                else:
                    best = _best(next(results), classifier.classes, top)
                    yield {"image": str(path), "classes": best, "error": None}


def _best(probabilities: Sequence[float], names: Sequence[str], top: int) -> list[dict[str, Any]]:
    order = sorted(range(len(names)), key=lambda number: -probabilities[number])[:top]
    return [{"index": n, "name": names[n], "probability": probabilities[n]} for n in order]


def _words(row: dict[str, Any]) -> str:
    if row["error"] is not None:
        return f"error: {row['error']}"
    return ", ".join(f"{best['name']} {100 * best['probability']:.2f} %" for best in row["classes"])
