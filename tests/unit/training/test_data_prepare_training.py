"""`data prepare` unpacks the training tar, a tar with one tar per class, also if it is interrupted."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from trainer.commands.data import data_app
from trainer.data.prepare import SortedImages
from trainer.data.prepare_training import is_training_source, sort_training_images
from trainer.shared.errors import TrainerError, UsageError

WNIDS = ["n01440764", "n01443537", "n02105855"]
CONTENT = {f"{wnid}/{wnid}_{number}.JPEG": f"{wnid} {number}".encode() * 99 for wnid in WNIDS for number in (3, 18)}


def pack(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def inner_tars(content: Mapping[str, bytes] = CONTENT) -> dict[str, bytes]:
    classes = sorted({name.split("/")[0] for name in content})
    return {
        f"{wnid}.tar": pack({name.split("/")[1]: data for name, data in content.items() if name.startswith(wnid)})
        for wnid in classes
    }


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    path = tmp_path / "ILSVRC2012_img_train.tar"
    path.write_bytes(pack(inner_tars()))
    return path


def run(source: Path, to: Path) -> SortedImages:
    return sort_training_images(source, to, images=6, classes=3)


def unpacked(to: Path) -> dict[str, bytes]:
    files = (path for path in (to / "train").rglob("*") if path.is_file())
    return {str(path.relative_to(to / "train")): path.read_bytes() for path in files}


def test_the_images_of_each_inner_tar_come_into_its_class(tar: Path, tmp_path: Path) -> None:
    assert is_training_source(tar)
    assert run(tar, tmp_path / "out") == SortedImages(written=6, present=0, missing=0)
    assert unpacked(tmp_path / "out") == CONTENT


def test_a_folder_with_the_inner_tars_does_as_well(tmp_path: Path) -> None:
    source = tmp_path / "out/train"  # where the outer tar was unpacked, in place
    source.mkdir(parents=True)
    tars = inner_tars()
    for name, content in tars.items():
        (source / name).write_bytes(content)
    assert is_training_source(source)
    assert run(source, tmp_path / "out").written == 6
    assert unpacked(tmp_path / "out") == CONTENT | tars


def test_a_second_run_writes_missing_and_truncated_images(tar: Path, tmp_path: Path) -> None:
    run(tar, tmp_path / "out")
    first, second, *_ = (tmp_path / "out/train" / name for name in CONTENT)
    first.unlink()
    second.write_bytes(b"half")
    assert run(tar, tmp_path / "out") == SortedImages(written=2, present=4, missing=0)
    assert unpacked(tmp_path / "out") == CONTENT


def test_entries_of_macos_are_left_out(tmp_path: Path) -> None:
    tars = inner_tars(CONTENT | {f"{WNIDS[0]}/._{WNIDS[0]}_3.JPEG": b"x"})
    (tmp_path / "mac.tar").write_bytes(pack({"./._n01440764.tar": b"x", ".DS_Store": b"x"} | tars))
    assert is_training_source(tmp_path / "mac.tar")
    assert run(tmp_path / "mac.tar", tmp_path / "out").written == 6


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({**inner_tars(), "readme.txt": b"x"}, "'readme.txt', which is not the tar of a class"),
        ({WNIDS[0] + ".tar": inner_tars()[f"{WNIDS[0]}.tar"]}, "holds 1 classes; ILSVRC2012 has 3"),
    ],
)
def test_another_tar_is_refused_before_any_write(tmp_path: Path, files: dict[str, bytes], fault: str) -> None:
    (tmp_path / "odd.tar").write_bytes(pack(files))
    with pytest.raises(UsageError, match=fault):
        run(tmp_path / "odd.tar", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        (f"{WNIDS[1]}.tar", pack({f"{WNIDS[0]}_3.JPEG": b"x"}), f"not an image of {WNIDS[1]}"),
        (f"{WNIDS[1]}.tar", inner_tars()[f"{WNIDS[1]}.tar"][:1200], f"{WNIDS[1]}.tar: not a whole tar file"),
        (f"{WNIDS[1]}.tar", b"<html>", f"{WNIDS[1]}.tar: not a whole tar file"),
    ],
)
def test_a_damaged_inner_tar_is_named_and_a_whole_one_completes_the_classes(
    tar: Path, tmp_path: Path, name: str, content: bytes, fault: str
) -> None:
    (tmp_path / "odd.tar").write_bytes(pack(inner_tars() | {name: content}))
    with pytest.raises(UsageError, match=fault):
        run(tmp_path / "odd.tar", tmp_path / "out")
    assert set(unpacked(tmp_path / "out")) == {image for image in CONTENT if image.startswith(WNIDS[0])}
    assert run(tar, tmp_path / "out") == SortedImages(written=4, present=2, missing=0)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_cut_tar_is_refused_before_any_write(tar: Path, tmp_path: Path, share: float) -> None:
    content = tar.read_bytes()
    tar.write_bytes(content[: int(len(content.rstrip(b"\0")) * share)])
    with pytest.raises(UsageError, match="not a whole tar file"):
        run(tar, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_images_are_an_error_unless_a_part_is_allowed(tmp_path: Path) -> None:
    part = dict(list(CONTENT.items())[:-1])
    (tmp_path / "part.tar").write_bytes(pack(inner_tars(part)))
    with pytest.raises(TrainerError, match="holds 5 images; ILSVRC2012 has 6"):
        run(tmp_path / "part.tar", tmp_path / "out")
    assert sort_training_images(tmp_path / "part.tar", tmp_path / "out", images=None).present == 5


def test_an_image_in_another_class_is_refused(tar: Path, tmp_path: Path) -> None:
    other = tmp_path / "out/train/n02105855/n01440764_3.JPEG"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"x")
    with pytest.raises(UsageError, match=f"{other}: belongs to class n01440764 now"):
        run(tar, tmp_path / "out")


def command(*words: str | Path) -> None:
    data_app([str(word) for word in words], result_action="return_value")


def test_the_command_tells_the_archives_apart(tar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "out"
    command("prepare", tar, "--to", to, "--allow-partial")
    assert capsys.readouterr().out == f"{to / 'train'}: 6 images written, 0 were there already\n"
    with pytest.raises(UsageError, match=r"--labels: .* holds training images: leave it out"):
        command("prepare", tar, "--to", to, "--labels", tar)
    with pytest.raises(UsageError, match="--labels is missing"):
        command("prepare", tmp_path, "--to", to)
    with pytest.raises(UsageError, match="gone: no such file or folder"):
        command("prepare", tmp_path / "gone", "--to", to)
