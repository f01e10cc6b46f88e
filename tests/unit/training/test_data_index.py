"""The folder index: right labels, a cache that is never stale, and one line for every kind of bad folder."""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.data import index as index_module
from trainer.data.bad_images import BadImageError
from trainer.data.decode import decode_image
from trainer.data.index import load_datasets, load_split
from trainer.shared.errors import UsageError

AN_HOUR_AGO = time.time() - 3600
UNPRIVILEGED = 65534


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "pnas"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """train/ with cat (2) and dog (1), val/ with dog (1); the folders are old, like a real data set's."""
    for name in ("train/cat/b.jpg", "train/cat/a.JPEG", "train/dog/c.png", "val/dog/d.jpg"):
        add(tmp_path / "data" / name)
    settle(tmp_path / "data")
    return tmp_path / "data"


def add(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def settle(data: Path) -> None:
    for folder, _, _ in os.walk(data):
        os.utime(folder, (AN_HOUR_AGO, AN_HOUR_AGO))


def names(data: Path, split: str) -> list[str]:
    index = load_split(data, split)
    return [str(index.path(sample).relative_to(index.root)) for sample in range(len(index))]


def test_images_are_sorted_and_labelled_by_class(data: Path) -> None:
    add(data / "train/.ipynb_checkpoints/x.jpg")
    (data / "train/cat/notes.txt").write_text("no image")
    index = load_split(data, "train")
    assert index.classes == ("cat", "dog")
    assert names(data, "train") == ["cat/a.JPEG", "cat/b.jpg", "dog/c.png"]
    assert index.labels.tolist() == [0, 0, 1]


def test_images_in_folders_of_a_class_belong_to_it(data: Path) -> None:
    add(data / "train/cat/images/deep/e.jpg")
    assert names(data, "train") == ["cat/a.JPEG", "cat/b.jpg", "cat/images/deep/e.jpg", "dog/c.png"]


def test_classes_and_images_can_be_links(data: Path, tmp_path: Path) -> None:
    add(tmp_path / "elsewhere/f.jpg")
    (data / "train/emu").symlink_to(tmp_path / "elsewhere")
    (data / "train/dog/g.jpg").symlink_to(tmp_path / "elsewhere/f.jpg")
    assert names(data, "train")[2:] == ["dog/c.png", "dog/g.jpg", "emu/f.jpg"]


def test_a_pipe_device_or_socket_is_not_an_image(data: Path) -> None:
    os.mkfifo(data / "train/cat/pipe.jpg")
    (data / "train/cat/zero.jpg").symlink_to("/dev/zero")
    (data / "train/cat/link.jpg").symlink_to("pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(data / "train/cat/socket.jpg"))
        assert names(data, "train") == ["cat/a.JPEG", "cat/b.jpg", "dog/c.png"]


def test_a_broken_link_is_listed_and_reported_by_its_reader(data: Path) -> None:
    (data / "train/cat/gone.jpg").symlink_to(data / "annex/gone.jpg")
    (data / "train/cat/loop.jpg").symlink_to("loop.jpg")
    assert names(data, "train")[2:4] == ["cat/gone.jpg", "cat/loop.jpg"]
    index = load_split(data, "train")
    with pytest.raises(BadImageError, match=r"gone.jpg: cannot be read: No such file or directory"):
        decode_image(index.path(2))


def test_validation_labels_count_in_the_classes_of_train(data: Path) -> None:
    datasets = load_datasets(data)
    assert datasets.train is not None
    assert datasets.classes == datasets.val.classes == datasets.train.classes == ("cat", "dog")
    assert datasets.val.labels.tolist() == [1]


def test_evaluation_needs_no_train_folder_but_uses_its_classes(data: Path) -> None:
    datasets = load_datasets(data, need_train=False)
    assert datasets.train is None
    assert datasets.val.labels.tolist() == [1]
    (data / "train").rename(data / "aside")
    val_only = load_datasets(data, need_train=False)
    assert val_only.classes == ("dog",)
    assert val_only.val.labels.tolist() == [0]


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust stamps however new they are: no program can set a folder's time of change back."""
    monkeypatch.setattr(index_module, "_SETTLED_NS", -(10**15))


@pytest.mark.usefixtures("settled")
def test_the_index_comes_from_the_cache_if_no_folder_changed(
    data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data / "train/cat/notes.txt").write_text("no image")
    first = load_split(data, "train")
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(index_module, "_scan", lambda root: pytest.fail(f"read {root} again"))
    second = load_split(data, "train")
    assert second.classes == first.classes
    assert np.array_equal(second.paths, first.paths)
    assert np.array_equal(second.labels, first.labels)
    assert second.left_out == first.left_out == {".txt": 1}


@pytest.mark.usefixtures("settled")
def test_a_new_index_removes_indexes_of_older_formats_and_unused_ones(data: Path, cache: Path) -> None:
    load_split(data, "train")
    (read,) = cache.iterdir()
    # The days since it was read last, and whether it stays.
    others = {
        "index-5-a.npz": (89, True),
        "index-5-b.npz": (91, False),
        ".index-5-c.npz.1": (0, True),  # another process writes it
        ".index-5-d.npz.1": (91, False),
        "index-4-e.npz": (0, False),
        "index-12-f.npz": (0, True),  # of a newer version
        "index-12-g.npz": (91, False),
        "index.npz": (91, True),
        "wheels": (91, True),
    }
    for name, days in {**{name: days for name, (days, _) in others.items()}, read.name: 91}.items():
        (cache / name).touch()
        os.utime(cache / name, (time.time() - days * 86_400,) * 2)
    load_split(data, "train")
    load_split(data, "val")
    left = {path.name for path in cache.iterdir()}
    assert {name for name in others if name in left} == {name for name, (_, stays) in others.items() if stays}
    assert len(left - others.keys()) == 2, "one was read again, the other one is new"


def linked(data: Path) -> Path:
    """Link the folder `more` of cat to a folder `current`, which is a link too."""
    for version in ("v1", "v2"):
        add(data / version / f"{version}.jpg")
    (data / "current").symlink_to("v1")
    (data / "train/cat/more").symlink_to("../../current")
    return data


def relink(data: Path) -> None:
    (data / "current").unlink()
    (data / "current").symlink_to("v2")


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda data: add(data / "train/cat/new.jpg"), ["cat/a.JPEG", "cat/b.jpg", "cat/new.jpg", "dog/c.png"]),
        (lambda data: (data / "train/cat/b.jpg").unlink(), ["cat/a.JPEG", "dog/c.png"]),
        (lambda data: add(data / "train/ant/h.jpg"), ["ant/h.jpg", "cat/a.JPEG", "cat/b.jpg", "dog/c.png"]),
        (lambda data: (data / "train/dog").rename(data / "train/pup"), ["cat/a.JPEG", "cat/b.jpg", "pup/c.png"]),
    ],
    ids=["file added", "file removed", "class added", "class renamed"],
)
def test_a_changed_tree_is_read_again(data: Path, change: Callable[[Path], object], expected: list[str]) -> None:
    names(data, "train")
    change(data)
    # As `tar x`, `rsync -a` and `cp -a` do it after each folder.
    settle(data)
    assert names(data, "train") == expected


@pytest.mark.usefixtures("settled")
def test_folders_behind_links_are_read_again_when_a_link_leads_elsewhere(data: Path) -> None:
    assert "cat/more/v1.jpg" in names(linked(data), "train")
    relink(data)
    assert "cat/more/v2.jpg" in names(data, "train")
    (data / "v2").rename(data / "away")
    assert names(data, "train") == ["cat/a.JPEG", "cat/b.jpg", "dog/c.png"]
    (data / "away").rename(data / "v2")
    assert "cat/more/v2.jpg" in names(data, "train")


def image_in_place(path: Path) -> None:
    """Write an image over a file, or to the file behind a link: the folder of `path` stays as it is."""
    with path.open("wb") as file:
        Image.new("RGB", (4, 4)).save(file, "JPEG")


@pytest.mark.usefixtures("settled")
def test_a_file_that_becomes_an_image_in_place_is_seen(data: Path, tmp_path: Path) -> None:
    cat = data / "train/cat"
    (cat / "plain").write_text("x")
    (cat / "frame.0001").write_text("x")
    (tmp_path / "target").write_text("x")
    (cat / "link").symlink_to(tmp_path / "target")
    (cat / "broken").symlink_to(tmp_path / "absent")
    expected = names(data, "train")
    for name in ("plain", "frame.0001", "link", "broken"):
        image_in_place(cat / name)
        expected = sorted([*expected, f"cat/{name}"])
        assert names(data, "train") == expected


def test_a_cache_of_a_folder_that_had_just_changed_is_not_used(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_split(data, "train")
    monkeypatch.setattr(index_module, "_scan", lambda root: pytest.fail(f"read {root} again"))
    with pytest.raises(pytest.fail.Exception, match="train again"):
        load_split(data, "train")


@pytest.mark.usefixtures("settled")
def test_the_index_of_a_file_system_without_reliable_times_of_folders_expires_soon(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = data.stat().st_dev
    mount = f"36 35 {os.major(device)}:{os.minor(device)} / /data rw shared:1 - {{}} bucket rw\n"
    later_ns = time.time_ns() + 10**12
    for kind, expires in (("fuse.obsfs", True), ("fuseblk", True), ("nfs4", False)):
        with monkeypatch.context() as patch:
            patch.setattr(index_module, "text_if_readable", lambda _path, kind=kind: mount.format(kind))
            load_split(data, "train")
            patch.setattr(index_module, "_scan", lambda root: pytest.fail(f"read {root} again"))
            load_split(data, "train")
            patch.setattr(time, "time_ns", lambda: later_ns)
            with pytest.raises(pytest.fail.Exception) if expires else contextlib.nullcontext():
                load_split(data, "train")
        (data / "train").touch()


@pytest.mark.usefixtures("settled")
def test_a_damaged_cache_is_replaced(data: Path, cache: Path) -> None:
    before = names(data, "train")
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    flipped = [whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :] for at in range(0, len(whole), 97)]
    for content in (b"", b"junk" * 100, whole[: len(whole) // 2], whole + b"more", *flipped):
        file.write_bytes(content)
        assert names(data, "train") == before
        assert file.read_bytes() != content


def test_a_failed_write_of_the_cache_is_not_an_error(data: Path, cache: Path) -> None:
    cache.parent.write_text("a file where the cache folder would be")
    assert len(load_split(data, "train")) == 3


def test_the_fingerprint_depends_on_files_and_classes_but_not_on_the_folder(data: Path, tmp_path: Path) -> None:
    before = load_datasets(data).fingerprint
    moved = data.rename(tmp_path / "moved")
    assert load_datasets(moved).fingerprint == before
    (moved / "val/dog/d.jpg").rename(moved / "val/dog/e.jpg")
    assert load_datasets(moved).fingerprint != before


def remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


def empty(folder: Path) -> None:
    remove(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (remove, ["no such folder", "train/ and val/"]),
        (lambda data: remove(data / "train"), ["no train/ folder"]),
        (lambda data: remove(data / "val"), ["no val/ folder"]),
        (lambda data: empty(data / "train"), ["train: no class folders"]),
        (lambda data: empty(data / "train/dog"), ["train: no images in class dog"]),
        (lambda data: empty(data / "val/dog"), ["val: no images in 1 class folders"]),
        (lambda data: add(data / "val/emu/x.jpg"), ["val: class emu is not in", "train"]),
    ],
    ids=["no data", "no train", "no val", "no classes", "empty class", "no images", "class that train lacks"],
)
def test_a_bad_data_folder_is_one_line_with_fault_and_place(
    data: Path, damage: Callable[[Path], object], expected: list[str]
) -> None:
    damage(data)
    with pytest.raises(UsageError) as error:
        load_datasets(data)
    assert str(data) in str(error.value)
    assert "\n" not in str(error.value)
    for words in expected:
        assert words in str(error.value)


@pytest.fixture
def as_another_user(tmp_path: Path) -> Iterator[None]:
    """Run the test's body as another user, since file permissions do not apply to root."""
    if os.geteuid() != 0:
        yield
        return
    for folder in (tmp_path, *list(tmp_path.parents)[:2]):
        folder.chmod(0o755)
    os.seteuid(UNPRIVILEGED)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("folder", [".", "train", "train/cat", "val"])
def test_an_unreadable_folder_is_named(data: Path, folder: str, request: pytest.FixtureRequest) -> None:
    (data / folder).chmod(0)
    request.getfixturevalue("as_another_user")
    with pytest.raises(UsageError, match=f"{data / folder}.*(cannot be read: Permission denied)") as error:
        load_datasets(data)
    assert "\n" not in str(error.value)


def test_a_class_in_two_unicode_forms_is_named_as_such(tmp_path: Path) -> None:
    for split, name in (("train", "caf\u00e9"), ("val", "cafe\u0301")):
        (tmp_path / split / name).mkdir(parents=True)
        (tmp_path / split / name / "a.jpg").touch()
    with pytest.raises(UsageError, match="these letters in another Unicode form: rename one of the two folders"):
        load_datasets(tmp_path)
