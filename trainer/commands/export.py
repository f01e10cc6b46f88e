"""`python -m trainer export`: trained weights as one file for other programs, with the preparation of images inside."""

from pathlib import Path

from cyclopts import App

from trainer.commands import AsJson
from trainer.commands.weights import FROM_WEIGHTS, ClassNames, ImagePreparation, WeightsPath, open_classifier
from trainer.shared.documents import document, json_text, to_json
from trainer.shared.program import TRAINER

export_app = App(
    name="export",
    help_epilogue=f"Examples:\n  {TRAINER} export --weights output/r1 --to flowers.onnx",
)


@export_app.default
def export(
    *,
    weights: WeightsPath,
    to: Path,
    class_names: ClassNames = None,
    preparation: ImagePreparation = FROM_WEIGHTS,
    as_json: AsJson = False,
) -> None:
    """Write weights as one file that takes a decoded image of any size and returns the probabilities of the classes.

    The file is run on sample images before it gets its name, and must give what the network gives.

    Parameters
    ----------
    to
        NAME.onnx (ONNX Runtime; needs the packages onnx, onnxscript and onnxruntime) or NAME.pt2 (torch.export.load).
    """
    classifier = open_classifier(weights, preparation, class_names)
    from trainer.inference.export import export_classifier  # noqa: PLC0415  # it imports torch, slow for --help

    report = export_classifier(classifier, to)
    if as_json:
        print(json_text(document("Export", **to_json(report))))
    else:
        print(
            f"{to}: {report.bytes / 1e6:,.1f} MB; on {report.images} images of different sizes its probabilities "
            f"differ by at most {report.largest_difference:.1e} from the network's"
        )
