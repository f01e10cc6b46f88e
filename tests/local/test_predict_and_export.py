"""`predict` and `export` give the classes and probabilities of the network that was trained."""

import contextlib
import dataclasses
import importlib
import io
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.documents import one_document
from trainer.cli import main
from trainer.commands import predict as predict_module
from trainer.data.decode import decode_image
from trainer.inference import classifier as classifier_module
from trainer.inference.classifier import Classifier, load_classifier
from trainer.inference.export import RunImage, compare_with_network, open_onnx, open_program
from trainer.model.pnasnet import TINY, PNASNet5
from trainer.model.weight_files import DataConfig, weight_metadata
from trainer.model.weights import write_weights
from trainer.shared.errors import TrainerError

DIGITS = tuple("0123456789")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Compute on one thread: in a network this small, threads mostly wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run's folder with weights whose outputs differ between classes and images."""
    torch.manual_seed(0)
    network = PNASNet5(TINY, num_classes=10)
    with torch.no_grad():
        network.last_linear.weight.mul_(100)
    run = tmp_path_factory.mktemp("run")
    (run / "checkpoints").mkdir()
    data = DataConfig(image_size=32, crop=0.9, interpolation="bicubic")
    write_weights(
        run / "checkpoints/best.safetensors",
        network.state_dict(),
        weight_metadata("pnasnet5tiny", "exact", 10, data, DIGITS),
    )
    return run


@pytest.fixture(scope="module")
def classifier(weights: Path) -> Classifier:
    return load_classifier(weights, {})


@pytest.fixture(scope="module")
def expected(classifier: Classifier, digits: Path) -> dict[Path, torch.Tensor]:
    """Return the network's probabilities for each validation image."""
    paths = _images(digits)
    assert len(paths) == 360
    return dict(zip(paths, classifier.probabilities([decode_image(path) for path in paths]), strict=True))


def _images(digits: Path) -> list[Path]:
    return sorted((digits / "val").rglob("*.jpg"))


def _json(arguments: Sequence[str | Path], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main([*map(str, arguments), "--json"]) == 0
    return one_document(capsys.readouterr().out, "PredictionList")


def test_predict_agrees_with_the_network_on_every_image(
    weights: Path, expected: dict[Path, torch.Tensor], digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = _json(["predict", "--weights", weights, digits / "val"], capsys)["items"]
    assert [row["image"] for row in rows] == [str(path) for path in expected]
    for probabilities, row in zip(expected.values(), rows, strict=True):
        assert [best["index"] for best in row["classes"]] == probabilities.topk(5).indices.tolist()
        assert [best["name"] for best in row["classes"]] == [DIGITS[best["index"]] for best in row["classes"]]
        values = [best["probability"] for best in row["classes"]]
        assert values == pytest.approx(probabilities.topk(5).values.tolist(), abs=1e-5)


@pytest.fixture(scope="module")
def exported(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the same network as ONNX and as a program of torch."""
    folder = tmp_path_factory.mktemp("exported")
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert main(["export", "--weights", str(weights), "--to", str(folder / "digits.onnx"), "--json"]) == 0
        assert main(["export", "--weights", str(weights), "--to", str(folder / "digits.pt2")]) == 0
    document, _, line = output.getvalue().rstrip().rpartition("\n")
    report = one_document(document, "Export")
    assert report["bytes"] == (folder / "digits.onnx").stat().st_size
    assert report["images"] > 1
    assert 0 <= report["largestDifference"] <= 1e-5
    assert line.startswith(f"{folder}/digits.pt2: ")
    assert sorted(path.name for path in folder.iterdir()) == ["digits.onnx", "digits.pt2"]
    return folder


@pytest.mark.parametrize(("name", "open_file"), [("digits.onnx", open_onnx), ("digits.pt2", open_program)])
def test_an_exported_file_agrees_with_the_network_on_every_image(
    name: str, open_file: Callable[[Path], RunImage], exported: Path, expected: dict[Path, torch.Tensor]
) -> None:
    run = open_file(exported / name)
    for path, probabilities in expected.items():
        with Image.open(path) as image:
            actual = run(torch.from_numpy(np.array(image.convert("RGB"))))
        assert actual.topk(5).indices.tolist() == probabilities.topk(5).indices.tolist()
        torch.testing.assert_close(actual, probabilities, rtol=0, atol=1e-5)


def test_an_exported_file_says_what_its_outputs_mean(exported: Path) -> None:
    onnx = importlib.import_module("onnxruntime").InferenceSession(exported / "digits.onnx").get_modelmeta()
    files = {"classes": "", "image_size": ""}
    torch.export.load(exported / "digits.pt2", extra_files=files)
    assert json.loads(onnx.custom_metadata_map["classes"]) == json.loads(files["classes"]) == list(DIGITS)
    assert onnx.custom_metadata_map["image_size"] == files["image_size"] == "32"


def test_a_file_that_differs_from_the_network_is_refused(exported: Path, classifier: Classifier) -> None:
    other = dataclasses.replace(classifier, config=classifier.config.model_copy(update={"normalize": "none"}))
    run = open_program(exported / "digits.pt2")
    assert compare_with_network(classifier, run, Path("same.pt2")) <= 1e-5
    with pytest.raises(TrainerError, match=r"other\.pt2: not written: .* its probabilities differ by"):
        compare_with_network(other, run, Path("other.pt2"))


def test_one_line_for_each_image_and_bad_ones_are_named(
    weights: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = _images(digits)[0]
    broken = tmp_path / "broken\n.png"
    broken.write_bytes(b"no image")
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{good}\r\n"))
    assert main(["predict", "--weights", str(weights), str(broken), "-", "--top", "2"]) == 1
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert lines[0] == f"{tmp_path}/broken\\n.png  error: not an image"
    assert lines[1].startswith(f"{good}  ")
    assert lines[1].count(" %") == 2
    assert output.err == "error: 1 of 2 images could not be classified; their lines say why\n"


@pytest.fixture
def places(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Change into an empty folder; return an empty folder, a pipe, a file of three names, and an image."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    (tmp_path / "names").write_text("a\nb\nc\n")
    names = ("empty", "pipe", "names")
    return {**{name: tmp_path / name for name in names}, "image": _images(digits)[0]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict"], "predict needs images"),
        (["predict", ""], "predict: an argument is empty; is a variable of the shell unset?"),
        (["predict", "nosuch.jpg"], "nosuch.jpg: no such file or folder"),
        (["predict", "{empty}"], "no images in this folder"),
        (["predict", "{pipe}"], "a pipe or device"),
        (["predict", "-"], "the list on standard input is empty"),
        (["predict", "{image}", "--class-names", "{names}"], "3 names, but"),
        (["predict", "{image}", "--class-names", "{pipe}"], "pipe: cannot be read: a pipe or device"),
        (["predict", "{image}", "--class-names", "nosuch"], "nosuch: cannot be read: No such file"),
        (["predict", "{image}", "--image-size", "5"], "--image-size 5"),
        (["predict", "{image}", "--image-size", "32.9"], "--image-size 32.9: is not a whole number"),
        (["predict", "{image}", "--top", "2.7"], '"2.7" is not a whole number'),
        (["predict", "{image}", "--padding", "seed"], "padding"),
        (["export", "--to", "x.tflite"], "--to x.tflite: its name must end in .onnx or .pt2"),
        (["export", "--to", "nosuch/x.pt2"], "--to nosuch/x.pt2: there is no folder nosuch; create it first"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], message: str, weights: Path, places: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.format(**places) for word in arguments]
    assert main([*words, "--weights", str(weights)]) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    assert not list(Path().glob("*.pt2"))


def test_probabilities_that_are_not_finite_are_no_answer(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = PNASNet5(TINY, num_classes=10)
    for name, buffer in network.named_buffers():
        if name.endswith("running_var"):
            buffer.fill_(-1)
    file = tmp_path / "w.safetensors"
    write_weights(
        file, network.state_dict(), weight_metadata("pnasnet5tiny", "exact", 10, DataConfig(image_size=32), DIGITS)
    )
    assert main(["predict", "--weights", str(file), str(_images(digits)[0]), "--json"]) == 1
    [item] = one_document(capsys.readouterr().out, "PredictionList")["items"]
    assert item["classes"] == []
    assert item["error"] == "its probabilities are not finite numbers"
    with pytest.raises(TrainerError, match="the network's own probabilities are not finite"):
        compare_with_network(load_classifier(file, {}), lambda image: image, tmp_path / "x.pt2")


def test_only_the_images_in_work_are_in_memory(
    weights: Path, digits: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images: list[weakref.ref[torch.Tensor]] = []
    in_memory: list[int] = []

    def decode(_path: Path) -> torch.Tensor:
        in_memory.append(sum(image() is not None for image in images))
        image = torch.zeros(3, 40, 40, dtype=torch.uint8)
        images.append(weakref.ref(image))
        return image

    monkeypatch.setattr(classifier_module, "decode_image", decode)
    monkeypatch.setattr(predict_module, "usable_processors", lambda: 1)
    assert len(_json(["predict", *_images(digits)[:8], "--weights", weights], capsys)["items"]) == 8
    assert in_memory == [0] * 8


def test_an_assumed_source_is_a_warning_and_threads_stay_within_the_quota(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(PNASNet5(TINY, num_classes=3).state_dict(), tmp_path / "other.pth")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(classifier_module, "usable_processors", lambda: 1)
    torch.set_num_threads(2)
    arguments = ["predict", "--weights", str(tmp_path / "other.pth"), str(_images(digits)[0]), "--image-size", "32"]
    assert main(arguments) == 0
    assert torch.get_num_threads() == 1
    assert capsys.readouterr().err.startswith("warning: the weights are taken for timm's, which published no such")
    assert main([*arguments, "--padding", "exact", "--normalize", "half"]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("OMP_NUM_THREADS", "all")
    assert main(arguments) == 2


def test_a_missing_image_is_noticed_without_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from trainer.cli import main; code = main(sys.argv[1:]); "
        "sys.exit(90 if 'torch' in sys.modules else code)"
    )
    words = ["predict", str(tmp_path / "nosuch.jpg"), "--weights", "w"]
    assert subprocess.run([sys.executable, "-c", program, *words], check=False, capture_output=True).returncode == 2
