"""`data prepare` puts every validation image into its class's folder, from a tar or a folder, also if interrupted."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from trainer.data.prepare import SortedImages, Transfer, read_labels, sort_validation_images
from trainer.shared.errors import TrainerError, UsageError

WNIDS = ["n01751748", "n09193705", "n02105855"]
IMAGES = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 7)]
LABELS = {name: WNIDS[position % 3] for position, name in enumerate(IMAGES)}


def content(name: str) -> bytes:
    return name.removeprefix("./val/").encode() * 50


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = tmp_path / "flat"
    source.mkdir()
    for name in IMAGES:
        (source / name).write_bytes(content(name))
    return source


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    return pack(tmp_path / "ILSVRC2012_img_val.tar", IMAGES)


def pack(path: Path, names: list[str]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            data = content(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def run(source: Path, to: Path, transfer: Transfer = "copy") -> SortedImages:
    return sort_validation_images(source, to, LABELS, transfer=transfer, images=6, classes=3)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


SORTED = {f"val/{wnid}/{name}": content(name) for name, wnid in LABELS.items()}


def test_the_images_of_a_tar_are_sorted_into_classes(tar: Path, tmp_path: Path) -> None:
    assert run(tar, tmp_path / "out") == SortedImages(written=6, present=0, missing=0)
    assert tree(tmp_path / "out") == SORTED


@pytest.mark.parametrize("transfer", ["copy", "link", "move"])
def test_the_images_of_a_folder_are_sorted_into_classes(folder: Path, tmp_path: Path, transfer: Transfer) -> None:
    assert run(folder, tmp_path / "out", transfer) == SortedImages(written=6, present=0, missing=0)
    assert tree(tmp_path / "out") == SORTED
    assert len(list(folder.iterdir())) == (0 if transfer == "move" else 6)
    image = tmp_path / "out/val" / LABELS[IMAGES[0]] / IMAGES[0]
    assert image.stat().st_nlink == (2 if transfer == "link" else 1)


@pytest.mark.parametrize("transfer", ["copy", "link", "move"])
def test_a_second_run_completes_missing_and_truncated_images(folder: Path, tmp_path: Path, transfer: Transfer) -> None:
    run(folder, tmp_path / "out", "copy")
    val = tmp_path / "out/val"
    (val / LABELS[IMAGES[1]] / IMAGES[1]).unlink()
    (val / LABELS[IMAGES[2]] / IMAGES[2]).write_bytes(b"half")
    assert run(folder, tmp_path / "out", transfer) == SortedImages(written=2, present=4, missing=0)
    assert tree(tmp_path / "out") == SORTED


def test_an_interrupted_move_continues(folder: Path, tmp_path: Path) -> None:
    first = tmp_path / "out/val" / LABELS[IMAGES[0]] / IMAGES[0]
    first.parent.mkdir(parents=True)
    (folder / IMAGES[0]).rename(first)
    assert run(folder, tmp_path / "out", "move") == SortedImages(written=5, present=1, missing=0)
    assert run(folder, tmp_path / "out", "move") == SortedImages(written=0, present=6, missing=0)
    assert tree(tmp_path / "out") == SORTED


def test_valprep_is_read_and_never_run(tmp_path: Path) -> None:
    script = tmp_path / "valprep.sh"
    trap = tmp_path / "trap"
    moves = [f"mv {name} {wnid}/" for name, wnid in LABELS.items()]
    script.write_text("\n".join(["#!/bin/bash", f"touch {trap}", *(f"mkdir -p {wnid}" for wnid in WNIDS), *moves]))
    assert read_labels(script) == LABELS
    assert not trap.exists()


def test_kaggles_table_is_read(tmp_path: Path) -> None:
    table = tmp_path / "LOC_val_solution.csv"
    rows = [f"{name.removesuffix('.JPEG')},{wnid} 85 1 499 272 {wnid} 1 2 3 4" for name, wnid in LABELS.items()]
    table.write_text("\n".join(["ImageId,PredictionString", *reversed(rows)]))
    assert read_labels(table) == LABELS


def test_one_wnid_per_line_counts_from_image_1(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("\n".join(LABELS.values()) + "\n")
    assert read_labels(tmp_path / "labels.txt") == LABELS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("490\n361\n", "line 1 is '490'; give valprep.sh"),
        ("", "it is empty"),
        (f"mv {IMAGES[0]} n01751748/\nmv {IMAGES[0]} n09193705/", "two classes, n01751748 and n09193705"),
    ],
)
def test_labels_without_classes_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "labels").write_text(text)
    with pytest.raises(UsageError) as error:
        read_labels(tmp_path / "labels")
    assert message in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_labels_may_come_from_an_editor_on_windows(tmp_path: Path, encoding: str, end: str) -> None:
    (tmp_path / "labels.txt").write_bytes((end.join(LABELS.values()) + end).encode(encoding))
    assert read_labels(tmp_path / "labels.txt") == LABELS


def test_missing_labels_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--labels .*gone: cannot be read: No such file"):
        read_labels(tmp_path / "gone")


def test_labels_for_a_part_are_refused_before_any_write(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"6 images in 3 classes; ILSVRC2012 has 50,000 in 1,000, 50 each"):
        sort_validation_images(folder, tmp_path / "out", LABELS)
    assert not (tmp_path / "out").exists()


def test_missing_images_are_an_error_unless_a_part_is_allowed(folder: Path, tmp_path: Path) -> None:
    (folder / IMAGES[4]).unlink()
    with pytest.raises(TrainerError, match=f"1 of 6 images are missing, the first is {IMAGES[4]}"):
        run(folder, tmp_path / "out")
    partial = sort_validation_images(folder, tmp_path / "out", LABELS, images=None)
    assert partial == SortedImages(written=0, present=5, missing=1)


@pytest.mark.parametrize("name", ["../../evil.JPEG", f"../{IMAGES[0]}", f"/tmp/{IMAGES[0]}", "readme.txt"])
def test_a_tar_with_another_file_in_it_writes_nothing(tmp_path: Path, name: str) -> None:
    tar = pack(tmp_path / "odd.tar", [IMAGES[0], name])
    with pytest.raises(UsageError, match="which is not a validation image"):
        run(tar, tmp_path / "out/deep")
    assert not (tmp_path / "out").exists()


def test_a_link_in_a_tar_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "link.tar", "w") as archive:
        link = tarfile.TarInfo(IMAGES[0])
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(UsageError, match="which is not a validation image"):
        run(tmp_path / "link.tar", tmp_path / "out")


def test_a_tar_made_on_macos_is_read(tmp_path: Path) -> None:
    tar = pack(tmp_path / "mac.tar", [f"./._{IMAGES[0]}", ".DS_Store", *(f"./val/{name}" for name in IMAGES)])
    assert run(tar, tmp_path / "out") == SortedImages(written=6, present=0, missing=0)
    assert tree(tmp_path / "out") == SORTED


def test_an_image_with_two_entries_in_a_tar_counts_once(tmp_path: Path) -> None:
    tar = pack(tmp_path / "twice.tar", [*IMAGES, IMAGES[0]])
    for written in (6, 0):
        assert run(tar, tmp_path / "out") == SortedImages(written=written, present=6 - written, missing=0)


def test_two_images_with_one_name_in_a_tar_are_refused(tmp_path: Path) -> None:
    tar = pack(tmp_path / "two.tar", [*IMAGES, f"again/{IMAGES[0]}"])
    with pytest.raises(UsageError, match=f"holds {IMAGES[0]} twice, with different sizes"):
        run(tar, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        (f"{WNIDS[1]}/{IMAGES[0]}", f"belongs to class {WNIDS[0]} now"),
        (f"{WNIDS[0]}/old/{IMAGES[0]}", f"belongs to class {WNIDS[0]} now"),
        ("cat/a.jpg", "is not one of these images"),
    ],
)
def test_a_folder_with_other_labels_or_images_is_refused(tar: Path, tmp_path: Path, path: str, fault: str) -> None:
    other = tmp_path / "out/val" / path
    other.parent.mkdir(parents=True)
    other.write_bytes(b"x")
    with pytest.raises(UsageError) as error:
        run(tar, tmp_path / "out")
    assert str(error.value) == f"{other}: {fault}; give --to an empty folder, or delete {tmp_path / 'out/val'}"
    assert tree(tmp_path / "out") == {f"val/{path}": b"x"}


def test_two_parts_with_their_own_labels_can_be_sorted_into_one_folder(tmp_path: Path) -> None:
    for names in (IMAGES[:2], IMAGES[2:]):
        tar = pack(tmp_path / "part.tar", names)
        sort_validation_images(tar, tmp_path / "out", {name: LABELS[name] for name in names}, images=None)
    assert tree(tmp_path / "out") == SORTED


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="a pipe or device, which cannot be read twice"):
        run(tmp_path / "pipe", tmp_path / "out")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.55])
def test_a_truncated_tar_is_refused_in_one_line(tar: Path, tmp_path: Path, share: float) -> None:
    tar.write_bytes(tar.read_bytes()[: int(6 * 2048 * share)])
    with pytest.raises((UsageError, TrainerError)) as error:
        run(tar, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert str(tar) in str(error.value)


def test_a_full_disk_is_one_line_and_leaves_no_half_file(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "out/val" / LABELS[IMAGES[0]] / IMAGES[0]
    target.parent.mkdir(parents=True)
    # Linux's device for a full disk, at the path of the first image's temporary file.
    target.with_name(f".{target.name}.partial").symlink_to("/dev/full")
    with pytest.raises(TrainerError) as error:
        run(folder, tmp_path / "out")
    assert f"{target}: cannot be written: No space left on device" in str(error.value)
    assert list(target.parent.iterdir()) == []
    assert run(folder, tmp_path / "out").written == 6


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone.tar: no such file or folder; give ILSVRC2012_img_val.tar"):
        run(tmp_path / "gone.tar", tmp_path / "out")


def test_a_folder_without_the_images_is_named(tmp_path: Path) -> None:
    (tmp_path / "holiday").mkdir()
    with pytest.raises(UsageError, match=r"holiday: no ILSVRC2012_val_\*.JPEG in it"):
        run(tmp_path / "holiday", tmp_path / "out")


@pytest.mark.parametrize("transfer", ["link", "move"])
def test_a_tars_images_cannot_be_linked_or_moved(tar: Path, tmp_path: Path, transfer: Transfer) -> None:
    with pytest.raises(UsageError, match=f"--transfer {transfer}"):
        run(tar, tmp_path / "out", transfer)


def test_an_image_without_a_label_is_named_before_any_write(folder: Path, tmp_path: Path) -> None:
    (folder / "ILSVRC2012_val_00000099.JPEG").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"names no class for ILSVRC2012_val_00000099.JPEG"):
        run(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_relative_paths_are_relative_to_the_current_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(Path(os.path.relpath(folder)), Path("out"), "link")
    assert tree(tmp_path / "out") == SORTED
