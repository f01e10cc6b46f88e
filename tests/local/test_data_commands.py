"""`python -m trainer data ...` on real files: the files that it writes, the faults that it finds, its messages."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from tests.documents import one_document
from trainer.commands.data import data_app
from trainer.data.index import load_datasets
from trainer.shared.errors import TrainerError, UsageError


def data(*arguments: str | Path) -> None:
    data_app([str(argument) for argument in arguments], result_action="return_value")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    data("digits", "--to", folder)
    return folder


@pytest.fixture
def photo() -> Image.Image:
    return Image.fromarray(load_sample_images().images[0]).resize((160, 100))


def test_digits_are_a_stratified_imagenet_folder(digits: Path) -> None:
    datasets = load_datasets(digits)
    assert datasets.train is not None
    assert datasets.classes == tuple("0123456789")
    assert (len(datasets.train), len(datasets.val)) == (1437, 360)
    held_out = [int((datasets.val.labels == label).sum()) for label in range(10)]
    assert min(held_out) >= 34
    assert max(held_out) <= 37
    with Image.open(datasets.val.path(0)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (32, 32))


def test_existing_digits_are_not_written_again(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in digits.rglob("*")}
    data("digits", "--to", digits)
    assert "all 1,797 digits are there already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in digits.rglob("*")} == before


def test_half_written_digits_are_completed_to_the_same_files(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = f"from trainer.commands.data import data_app; data_app(['digits', '--to', {str(tmp_path)!r}])"
    writer = subprocess.Popen([sys.executable, "-c", code])
    while not list(tmp_path.glob("train/*/*")):
        time.sleep(0.01)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert len(list(tmp_path.rglob("*.jpg"))) < 1797
    data("digits", "--to", tmp_path)
    assert "of 1,797 digits written" in capsys.readouterr().out
    files, expected = (
        {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.jpg")}
        for folder in (tmp_path, digits)
    )
    assert files == expected


def test_digits_never_mix_with_other_data(tmp_path: Path, photo: Image.Image) -> None:
    (tmp_path / "train/n01440764").mkdir(parents=True)
    photo.save(tmp_path / "train/n01440764/n01440764_18.JPEG")
    with pytest.raises(UsageError, match=r"n01440764_18.JPEG: not one of the digits"):
        data("digits", "--to", tmp_path)
    assert not (tmp_path / "val").exists()


def test_digits_without_scikit_learn_name_the_extra_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    with pytest.raises(UsageError, match=r"pip install 'pnas\[demo\]'"):
        data("digits", "--to", tmp_path)


def broken_tree(folder: Path, photo: Image.Image) -> Path:
    """Write one good image, four unusual ones and four broken ones; return the folder."""
    cat = folder / "val/cat"
    cat.mkdir(parents=True)
    photo.save(cat / "good.jpg")
    photo.convert("L").save(cat / "grey.jpg")
    photo.convert("CMYK").save(cat / "cmyk.jpg")
    photo.save(cat / "png.JPEG", "PNG")
    whole = (cat / "good.jpg").read_bytes()
    (cat / "padded.jpg").write_bytes(whole[:-2] + b"\0\0" + whole[-2:])
    (cat / "empty.jpg").write_bytes(b"")
    (cat / "html.jpg").write_text("<html>404</html>")
    (cat / "short.jpg").write_bytes(whole[: len(whole) // 2])
    middle = len(whole) // 2
    # A marker in the middle ends the pixels there. libjpeg fills the rest with grey and reports only a warning.
    (cat / "holed.jpg").write_bytes(whole[:middle] + b"\xff\xd9" * 20 + whole[middle + 40 :])
    return folder


def test_verify_lists_every_broken_file_with_its_reason(
    tmp_path: Path, photo: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TrainerError, match=r"4 of 9 images cannot be trained on"):
        data("verify", broken_tree(tmp_path, photo), "--workers", "2")
    cat = tmp_path / "val/cat"
    assert capsys.readouterr().out.splitlines() == [
        f"{cat / 'empty.jpg'}: empty, zero bytes",
        f"{cat / 'holed.jpg'}: damaged inside: Corrupt JPEG data: premature end of data segment",
        f"{cat / 'html.jpg'}: not an image",
        f"{cat / 'short.jpg'}: truncated, the end of the file is missing",
        "note: 1 images: CMYK",
        "note: 1 images: PNG named .JPEG",
        "note: 1 images: decoder warning",
        "note: 1 images: grey",
        f"{tmp_path}: 9 images read, 4 broken",
    ]


def test_verify_reports_the_same_as_json(
    tmp_path: Path, photo: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TrainerError):
        data("verify", broken_tree(tmp_path, photo), "--json")
    report = one_document(capsys.readouterr().out, "DataVerification")
    assert report["checked"] == 9
    assert [Path(entry["path"]).name for entry in report["broken"]] == [
        "empty.jpg",
        "holed.jpg",
        "html.jpg",
        "short.jpg",
    ]
    assert report["notes"] == {"CMYK": 1, "PNG named .JPEG": 1, "decoder warning": 1, "grey": 1}


def test_verify_reports_no_fault_in_good_data(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data("verify", digits)
    assert capsys.readouterr().out == f"{digits}: 1,797 images read, 0 broken\n"


def test_packed_images_are_verified_like_their_folder(
    tmp_path: Path, digits: Path, photo: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    data("pack", digits, "--to", tmp_path / "pack")
    data("pack", digits, "--to", tmp_path / "pack")
    data("verify", tmp_path / "pack")
    output = capsys.readouterr()
    assert output.out.splitlines() == [
        f"{tmp_path / 'pack'}: 1,797 images packed, 0 were there already",
        f"{tmp_path / 'pack'}: 0 images packed, 1,797 were there already",
        f"{tmp_path / 'pack'}: 1,797 images read, 0 broken",
    ]
    assert output.err.splitlines() == ["1,437 images packed", "1,797 images packed"]
    data("pack", broken_tree(tmp_path / "broken", photo), "--to", tmp_path / "of-broken")
    reports = []
    for folder in (tmp_path / "broken", tmp_path / "of-broken"):
        capsys.readouterr()
        with pytest.raises(TrainerError, match=r"4 of 9 images cannot be trained on"):
            data("verify", folder, "--workers", "2")
        reports.append(capsys.readouterr().out.replace(f"{folder}", "DATA"))
    assert reports[1] == reports[0]


@pytest.mark.parametrize(("name", "message"), [("gone", "no such folder"), (".", "no images in it")])
def test_verify_without_images_gives_one_line(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        data("verify", tmp_path / name)


def test_prepare_continues_after_a_kill(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "flat", tmp_path / "out"
    source.mkdir()
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 3001)]
    for name in names:
        (source / name).write_bytes(name.encode() * 200)
    labels = tmp_path / "valprep.sh"
    labels.write_text("\n".join(f"mv {name} n{position % 10:08d}/" for position, name in enumerate(names)))
    arguments = ["prepare", str(source), "--to", str(out), "--labels", str(labels), "--allow-partial"]
    code = f"from trainer.commands.data import data_app; data_app({arguments!r})"
    writer = subprocess.Popen([sys.executable, "-c", code])
    while not list(out.glob("val/*/*.JPEG")):
        time.sleep(0.001)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    existing = len(list(out.glob("val/*/ILSVRC*")))
    assert 0 < existing < 3000
    data(*arguments)
    assert f"{3000 - existing:,} images written, {existing:,} were there already" in capsys.readouterr().out
    files = sorted(out.glob("val/*/*"))
    assert sorted(path.name for path in files) == names
    assert all(path.read_bytes() == path.name.encode() * 200 for path in files)
    assert not [path for path in files if path.name.startswith(".")]


def test_a_wrong_folder_is_answered_without_importing_torch(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    commands = [
        ["data", "verify", "gone"],
        ["data", "verify", "empty"],
        ["data", "prepare", "gone", "--labels", "gone", "--to", "to"],
        ["data", "digits", "--to", "/dev/null/to"],
        ["--data-path", "gone", "--device", "cpu"],
        ["inspect", "gone"],
    ]
    code = (
        "import sys; from trainer.cli import main\n"
        f"codes = [main(command) for command in {commands!r}]\n"
        "print(codes, sorted({'torch', 'torchvision'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path.cwd())}, text=True,
        capture_output=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[2, 2, 2, 1, 2, 2] []", done.stderr
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["error"] * len(commands), done.stderr
