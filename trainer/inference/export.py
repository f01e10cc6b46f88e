"""A classifier as one file for other programs, with the preparation of images inside, verified before it gets its name.

`.onnx` runs in ONNX Runtime, without torch; `.pt2` is torch's ExportedProgram, without this project. Both take a
decoded image as numpy and Pillow hold it, uint8 (height, width, 3), and return the probabilities of the classes.
"""

import contextlib
import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from trainer.data.augment import resized_side
from trainer.inference.classifier import Classifier
from trainer.inference.preprocessing import EvaluationInput
from trainer.model.weight_files import NORMALIZATIONS
from trainer.shared.errors import TrainerError, UsageError
from trainer.shared.files import replacing, writing

EXPORT_SUFFIXES: Final = (".onnx", ".pt2")
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE: Final = 1e-5
"""The largest difference of a probability: other kernels add in another order."""
# Upright and wide, smaller and larger than the network's input, square, and one very long.
_SAMPLE_SIZES = ((375, 500), (500, 375), (331, 331), (40, 30), (31, 47), (64, 900))

RunImage = Callable[[Tensor], Tensor]
"""From a decoded image, uint8 (H, W, 3), to probabilities, (classes,)."""


@dataclass(frozen=True)
class ExportReport:
    """How an exported file was verified: on how many images, and its largest difference of a probability."""

    path: Path
    images: int
    largest_difference: float
    bytes: int


class ExportedClassifier(nn.Module):
    """A classifier from a decoded image to probabilities, of operators that other runtimes have."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        config = classifier.config
        mean, std = NORMALIZATIONS[config.normalize]
        self.preparation = EvaluationInput(
            image_size=config.image_size,
            resized_side=resized_side(config.image_size, config.eval_crop),
            interpolation=config.interpolation,
            mean=mean,
            std=std,
        )
        self.network = classifier.network

    def forward(self, image: Tensor) -> Tensor:
        """Return float32 (classes,) for uint8 (H, W, 3)."""
        probabilities: Tensor = self.network(self.preparation(image)).softmax(1)[0]
        return probabilities


def export_classifier(classifier: Classifier, path: Path) -> ExportReport:
    """Write a classifier to `path`, whose suffix chooses the format. The file appears only if its results are right.

    Raises:
        UsageError: the suffix is unknown, or packages for ONNX are missing.
        TrainerError: the file cannot be written, or differs from the network.
    """
    if path.suffix not in EXPORT_SUFFIXES:
        raise UsageError(f"--to {path}: its name must end in {' or '.join(EXPORT_SUFFIXES)}")
    if not path.parent.is_dir():
        raise UsageError(f"--to {path}: there is no folder {path.parent}; create it first")
    write = _write_onnx if path.suffix == ".onnx" else _write_program
    with writing(path, "free space, or choose another --to"), _quiet_export():
        program = torch.export.export(
            ExportedClassifier(classifier).eval(),
            (torch.zeros(*_SAMPLE_SIZES[0], 3, dtype=torch.uint8),),
            dynamic_shapes={"image": {0: torch.export.Dim("height", min=2), 1: torch.export.Dim("width", min=2)}},
        )
        with replacing(path) as partial:
            difference = compare_with_network(classifier, write(classifier, program, partial), path)
    return ExportReport(path, len(_SAMPLE_SIZES), difference, path.stat().st_size)


def description(classifier: Classifier) -> dict[str, str]:
    """Return what an exported file says about itself; `classes` is a JSON list."""
    config = classifier.config
    return {
        "model": config.model,
        "image_size": str(config.image_size),
        "classes": json.dumps(classifier.classes),
        "input": "image: uint8 (height, width, 3), RGB, of any size",
        "output": "probabilities: float32 (classes,)",
    }


def open_onnx(path: Path) -> RunImage:
    """Return an exported ONNX file as a function."""
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # its threads wait without computing
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


def open_program(path: Path) -> RunImage:
    """Return an exported program of torch as a function."""
    run: RunImage = torch.export.load(path).module()
    return run


def _write_program(classifier: Classifier, program: torch.export.ExportedProgram, path: Path) -> RunImage:
    # Through memory, because torch's own writer reports a full disk without a reason.
    content = io.BytesIO()
    torch.export.save(program, content, extra_files=description(classifier))
    path.write_bytes(content.getbuffer())
    return open_program(path)


def _write_onnx(classifier: Classifier, program: torch.export.ExportedProgram, path: Path) -> RunImage:
    try:
        for name in ONNX_PACKAGES:
            importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"export to ONNX needs the package {error.name}: pip install {' '.join(ONNX_PACKAGES)}, or export to .pt2"
        ) from error
    exported = torch.onnx.export(
        program, dynamo=True, verbose=False, input_names=["image"], output_names=["probabilities"]
    )
    assert exported is not None  # it is None only if torch writes the file
    exported.model.metadata_props.update(description(classifier))
    exported.save(path)
    return open_onnx(path)


def compare_with_network(classifier: Classifier, run: RunImage, path: Path) -> float:
    """Return the largest difference between the file's probabilities and the network's on sample images.

    Raises:
        TrainerError: it is too large.
    """
    largest = 0.0
    for image in _sample_images():
        expected = classifier.probabilities([image.permute(2, 0, 1)])[0]
        if not bool(expected.isfinite().all()):
            raise TrainerError(f"{path}: not written: the network's own probabilities are not finite; train it again")
        with torch.no_grad():
            actual = run(image)
        difference = (actual - expected).abs().max().item()
        if not difference <= TOLERANCE:
            raise TrainerError(
                f"{path}: not written: for an image of {image.shape[1]} x {image.shape[0]} pixels its probabilities "
                f"differ by {difference:.2g} from the network's; export to the other format, or report it"
            )
        largest = max(largest, difference)
    return largest


def _sample_images() -> Iterator[Tensor]:
    """Yield images with coarse and fine structure, the same in each call."""
    generator = torch.Generator().manual_seed(0)
    for height, width in _SAMPLE_SIZES:
        coarse = torch.rand(1, 3, 5, 7, generator=generator)
        smooth = nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[0].permute(1, 2, 0)
        noise = torch.rand(height, width, 3, generator=generator)
        yield (255 * (0.8 * smooth + 0.2 * noise)).to(torch.uint8)


@contextlib.contextmanager
def _quiet_export() -> Iterator[None]:
    """Hide notices of torch's exporters about their own parts and future, which no user can act on."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
