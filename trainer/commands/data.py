"""The `data` commands `prepare`, `pack`, `verify` and `digits` make and check data sets before training.

They print; the modules that they call only return results and raise errors.
"""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.validators import Number

from trainer.commands import AsJson
from trainer.data import prepare as prepare_module
from trainer.data import prepare_training
from trainer.data.tree import describe_left_out, read_tree
from trainer.shared.container import usable_processors
from trainer.shared.documents import document, json_text, to_json
from trainer.shared.durations import count
from trainer.shared.errors import TrainerError, UsageError
from trainer.shared.runs import PACK_INDEX
from trainer.shared.text import visible

data_app = App(name="data")


@data_app.command(name="prepare")
def prepare_data(
    source: Path,
    /,
    *,
    to: Path,
    labels: Path | None = None,
    transfer: prepare_module.Transfer = "copy",
    allow_partial: Annotated[bool, Parameter(negative="", show_default=False)] = False,
) -> None:
    """Sort ILSVRC2012's images into one folder per class; it can be stopped and repeated.

    Parameters
    ----------
    source
        ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, or a folder with the content of one of them.
    to
        Data folder; the images go to its train/ or val/.
    labels
        The validation images' classes: valprep.sh, LOC_val_solution.csv, or a file with one wnid per line.
    transfer
        How a folder's validation images get to val/: copied, hard-linked or moved.
    allow_partial
        Accept fewer than 1,281,167 (50,000) images in 1,000 classes.
    """

    def on_progress(count: int) -> None:
        if count % 5_000 == 0:
            print(f"{count:,} images sorted", file=sys.stderr, flush=True)

    if prepare_training.is_training_source(source):
        if labels is not None or transfer != "copy":
            option = "--labels" if labels is not None else "--transfer"
            raise UsageError(f"{option}: {source} holds training images: leave it out, their tars name the classes")
        split, images = to / "train", prepare_training.TRAINING_IMAGES
        done = prepare_training.sort_training_images(
            source, to, images=None if allow_partial else images, progress=on_progress
        )
    else:
        if labels is None:
            raise UsageError(f"--labels is missing: {source} does not name the classes of its images; give valprep.sh")
        split, images = to / "val", prepare_module.VALIDATION_IMAGES
        done = prepare_module.sort_validation_images(
            source,
            to,
            prepare_module.read_labels(labels),
            transfer=transfer,
            images=None if allow_partial else images,
            progress=on_progress,
        )
    missing = f", {done.missing:,} missing" if done.missing else ""
    print(visible(f"{split}: {done.written:,} images written, {done.present:,} were there already{missing}"))


@data_app.command(name="verify")
def verify_data(
    path: Path,
    /,
    *,
    workers: Annotated[int | None, Parameter(converter=count, validator=Number(gte=1))] = None,
    as_json: AsJson = False,
) -> None:
    """Decode every image below a folder and list the broken ones; exit code 1 if there are any.

    Parameters
    ----------
    path
        Data folder, any folder in one, or a pack.
    workers
        Number of decoding processes. [default: one per CPU, within the container's limit]
    """
    trees = read_tree(path)
    left_out = [describe_left_out(folder, tree.left_out) for folder, tree in trees.items() if tree.left_out]
    has_files = any(names for tree in trees.values() for names in tree.images)
    is_pack = not has_files and (path / PACK_INDEX).exists()
    if not has_files and not is_pack:
        raise UsageError("; ".join([f"{path}: no images in it", *left_out]))
    from trainer.data import verify as verify_module  # noqa: PLC0415  # it imports torch, slow for a wrong folder

    workers = workers or usable_processors()
    if is_pack:
        left_out, report = [], verify_module.verify_pack(path, workers=workers)
    else:
        report = verify_module.verify_images(trees, workers=workers)
    if as_json:
        print(json_text(document("DataVerification", path=str(path), **to_json(report))))
    else:
        for finding in report.broken:
            print(visible(f"{finding.path}: {finding.reason}"))
        for note, count in report.notes.items():
            print(visible(f"note: {count:,} images: {note}"))
        for line in left_out:
            print(visible(f"note: {line}"))
        print(visible(f"{path}: {report.checked:,} images read, {len(report.broken):,} broken"))
    if report.broken:
        raise TrainerError(
            f"{path}: {len(report.broken):,} of {report.checked:,} images cannot be trained on; replace or delete them"
        ).after_document(as_json)


@data_app.command(name="pack")
def pack_data(folder: Path, /, *, to: Path) -> None:
    """Copy a data folder's images into a few large tars for network storage; it can be stopped and repeated.

    Parameters
    ----------
    folder
        Data folder with train/ and val/, or only val/.
    to
        Folder that gets the tars and their index; it is a --data-path like the data folder.
    """
    from trainer.data import packing  # noqa: PLC0415  # it imports numpy, slow for --help

    done = packing.pack_images(folder, to, progress=lambda count: print(f"{count:,} images packed", file=sys.stderr))
    print(visible(f"{to}: {done.written:,} images packed, {done.present:,} were there already"))


@data_app.command(name="digits")
def make_digits(*, to: Path) -> None:
    """Write scikit-learn's 1,797 handwritten digits as 32 px JPEGs: train/ and val/ for a first run.

    Parameters
    ----------
    to
        Folder that gets train/ and val/.
    """
    from trainer.data import digits as digits_module  # noqa: PLC0415  # it imports Pillow, slow for --help

    written = digits_module.write_digits(to)
    if written:
        done = f"{written:,} of {digits_module.COUNT:,} digits written, {digits_module.HELD_OUT} of them held out"
    else:
        done = f"all {digits_module.COUNT:,} digits are there already"
    print(visible(f"{to}: {done}"))
