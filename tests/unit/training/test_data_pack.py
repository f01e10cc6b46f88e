"""A pack is the data folder in another form: the same images in the same order, whole or refused in one line."""

import fcntl
import functools
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.data import content as content_module
from trainer.data.arrays import write_arrays
from trainer.data.bad_images import BadImages
from trainer.data.content import PackedImage, read_ahead, read_image
from trainer.data.index import ImageIndex, load_datasets
from trainer.data.loader import eval_batches, train_batches
from trainer.data.packing import PackedImages, pack_images
from trainer.data.sampler import plan_epoch
from trainer.data.verify import verify_pack
from trainer.shared.config import TrainConfig
from trainer.shared.errors import TrainerError, UsageError
from trainer.shared.runs import PACK_INDEX

TAR_BYTES = 6_000
"""Small enough for several tars of the few images here."""
LATIN_1 = os.fsdecode(b"caf\xe9")
CONFIG = TrainConfig(image_size=16, batch_size=4, seed=7, augment="trivial", on_bad_image="skip", workers=0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three classes with images of all kinds: long, odd and linked names, several formats, damaged and empty files."""
    folder = tmp_path / "data"
    draw = np.random.default_rng(0)
    names = [f"train/{label}/{number:02d}.jpg" for label in ("cat", "dog", LATIN_1) for number in range(8)]
    names += ["train/cat/deep/er/x.png", f"train/dog/{'n' * 150}.JPEG", "train/dog/line\nend.jpg"]
    names += ["val/dog/a.b.c.jpg", "val/dog/b.jpg"]
    names += [f"val/cat/{number}.jpeg" for number in range(5)]
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    (folder / "train/cat/02.jpg").write_bytes((folder / "train/cat/01.jpg").read_bytes()[:300])
    (folder / "val/cat/2.jpeg").write_bytes(b"")
    (folder / "train/cat/notes.txt").write_text("no image")
    (tmp_path / "elsewhere.jpg").write_bytes((folder / "train/dog/03.jpg").read_bytes())
    (folder / "train/dog/link.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    return folder


@pytest.fixture
def packed(data: Path, tmp_path: Path) -> Path:
    pack_images(data, tmp_path / "pack", tar_bytes=TAR_BYTES)
    return tmp_path / "pack"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def contents(index: ImageIndex) -> list[bytes]:
    return [read_image(index.place(sample)).data.tobytes() for sample in range(len(index))]


@pytest.mark.parametrize("need_train", [True, False])
def test_a_pack_has_the_images_and_the_identity_of_its_folder(data: Path, packed: Path, need_train: bool) -> None:
    folder, pack = (load_datasets(path, need_train=need_train) for path in (data, packed))
    assert pack.fingerprint == folder.fingerprint
    assert pack.classes == folder.classes
    assert (pack.train is None) == (folder.train is None) == (not need_train)
    for ours, theirs in ((pack.train, folder.train), (pack.val, folder.val)):
        if ours is not None and theirs is not None:
            assert ours.paths.tolist() == theirs.paths.tolist()
            assert ours.labels.tolist() == theirs.labels.tolist()
            assert contents(ours) == contents(theirs)
    assert len(list(packed.glob("train-*.tar"))) > 2


def test_a_folder_with_validation_images_only_can_be_packed(data: Path, tmp_path: Path) -> None:
    shutil.rmtree(data / "train")
    assert pack_images(data, tmp_path / "pack") == PackedImages(written=7, present=0)
    ours, theirs = (load_datasets(path, need_train=False) for path in (tmp_path / "pack", data))
    assert (ours.fingerprint, ours.classes) == (theirs.fingerprint, theirs.classes)
    with pytest.raises(UsageError, match="a pack without training images"):
        load_datasets(tmp_path / "pack")


@pytest.mark.parametrize("slow", [False, True])
def test_batches_and_bad_images_are_the_folders_bit_for_bit(
    data: Path, packed: Path, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if slow:  # as from a server: each read of a pack goes to a thread
        monkeypatch.setattr(content_module, "_SLOW_S", 0.0)
        # As with more tars than stay open: each is closed soon.
        monkeypatch.setattr(content_module, "_open_tar", functools.lru_cache(1)(content_module._OpenTar))
    results = []
    for path in (data, packed):
        datasets, bad = load_datasets(path), BadImages()
        assert datasets.train is not None
        plan = plan_epoch(len(datasets.train), world_size=1, batch_size=4, accumulate=1, steps_limit=None)
        batches = [
            *train_batches(datasets.train, config=CONFIG, epoch=1, plan=plan, rank=0, pin_memory=False, bad_images=bad),
            *eval_batches(datasets.val, config=CONFIG, rank=0, world_size=1, pin_memory=False, bad_images=bad),
        ]
        found = [
            (os.path.relpath(image.path, path), image.reason, image.split, image.sample, image.replaced_by)
            for image in bad.take_new()
        ]
        results.append((batches, found))
    (folder, folder_bad), (pack, pack_bad) = results
    assert all(
        torch.equal(a, b) for ours, theirs in zip(pack, folder, strict=True) for a, b in zip(ours, theirs, strict=True)
    )
    assert pack_bad == folder_bad
    assert {Path(path).name for path, *_ in pack_bad} == {"02.jpg", "2.jpeg"}


def test_an_image_costs_one_read_in_a_pack_and_a_file_one_open_more(
    data: Path, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def counted(name: str) -> Callable[..., int]:
        call: Callable[..., int] = getattr(os, name)

        def count(*arguments: object) -> int:
            calls.append(name)
            return call(*arguments)

        return count

    for name in ("open", "preadv"):
        monkeypatch.setattr(os, name, counted(name))
    indexes = [load_datasets(path).val for path in (data, packed)]
    counts = []
    for index in indexes:
        calls.clear()
        list(read_ahead(map(index.place, [0, 1, 3, 5, 6])))
        counts.append((calls.count("open"), calls.count("preadv")))
    val = indexes[1].packed
    assert val is not None
    assert counts == [(5, 5), (len(val.tars), 5)]


def test_other_programs_read_a_pack(data: Path, packed: Path, tmp_path: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=packed, check=True)
    (tmp_path / "again").mkdir()
    for tar in sorted(packed.glob("*.tar")):
        subprocess.run(["tar", "xf", tar, "-C", tmp_path / "again"], check=True)
    (data / "train/cat/notes.txt").unlink()  # only images are packed
    assert files(tmp_path / "again") == files(data)
    before, after = ((folder / "val/dog/a.b.c.jpg").stat() for folder in (data, tmp_path / "again"))
    assert int(after.st_mtime) == int(before.st_mtime)


_KILLED_AT = """
import os, signal, sys
from pathlib import Path
from trainer.data.packing import pack_images

source, to, tar_bytes, at, before = *map(Path, sys.argv[1:3]), *map(int, sys.argv[3:])
replace, calls = Path.replace, 0

def killing(path, target):
    global calls
    calls += target.parent == to
    if calls == at and before:
        os.kill(os.getpid(), signal.SIGKILL)
    result = replace(path, target)
    if calls == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

Path.replace = killing
pack_images(source, to, tar_bytes=tar_bytes)
"""


@pytest.mark.parametrize(
    ("at", "before"), [(1, True), (2, False), (4, True), (7, False), (-2, True), (-1, True), (-1, False)]
)
def test_a_killed_command_goes_on_and_gives_the_same_bytes(
    data: Path, packed: Path, tmp_path: Path, at: int, before: bool
) -> None:
    """Each file comes into being by a rename; a negative number counts the renames from the last one."""
    again = tmp_path / "again"
    tars = len(list(packed.glob("*.tar")))
    renames = 2 * tars + 2
    words = [str(word) for word in (data, again, TAR_BYTES, at if at > 0 else renames + 1 + at, int(before))]
    killed = subprocess.run([sys.executable, "-c", _KILLED_AT, *words], capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr
    if not (again / PACK_INDEX).exists():
        with pytest.raises(UsageError, match=r"half a pack, without pack-index.npz: .* it continues"):
            load_datasets(again)
    done = pack_images(data, again, tar_bytes=TAR_BYTES)
    assert done.written + done.present == 35
    assert (done.present > 0) == (at not in (1,))
    pack_images(data, again)  # removes what a killed command left behind
    assert files(again) == files(packed)


def test_a_full_disk_costs_one_line_and_the_command_goes_on(data: Path, packed: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    code = "import sys; from trainer.cli import main; sys.exit(main())"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    words = ["data", "pack", str(data), "--to", str(again)]
    full = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, preexec_fn=limit, check=False
    )
    assert full.returncode == 1
    assert full.stdout == ""
    assert full.stderr == (
        f"error: {again / 'train-00000.tar'}: cannot be written: File too large; free space or permit it, then run the"
        " same command again: it continues where it stopped\n"
    )
    pack_images(data, again, tar_bytes=TAR_BYTES)
    assert files(again) == files(packed)


def test_two_commands_do_not_pack_into_one_folder(data: Path, tmp_path: Path) -> None:
    to = tmp_path / "pack"

    def pack_again(_done: int) -> None:
        with pytest.raises(UsageError, match="another process packs into it; wait for its end"):
            pack_images(data, to, tar_bytes=TAR_BYTES)

    pack_images(data, to, tar_bytes=TAR_BYTES, progress=pack_again)
    assert len(load_datasets(to).val) == 7


def test_a_lock_that_its_holder_has_removed_meanwhile_does_not_count(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = tmp_path / "pack"

    def end_of_the_holder(_lock: object, _operation: int) -> None:
        (to / ".pack.lock").unlink()

    monkeypatch.setattr(fcntl, "flock", end_of_the_holder)
    with pytest.raises(UsageError, match="another process packs into it; wait for its end"):
        pack_images(data, to, tar_bytes=TAR_BYTES)


def _touch(data: Path) -> None:
    for path in data.rglob("*.jpg"):
        os.utime(path, (1, 1))


def _swap(first: Path, second: Path) -> None:
    aside = first.with_name("aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a new image": (lambda data: shutil.copy(data / "train/cat/01.jpg", data / "train/cat/011.jpg"), "011.jpg is new"),
    "a new last image": (
        lambda data: shutil.copy(data / "train/cat/01.jpg", data / "val/dog/z.jpg"),
        "dog/z.jpg is new",
    ),
    "an image less": (lambda data: (data / "train/dog/05.jpg").unlink(), "dog/05.jpg is gone"),
    "no last image": (lambda data: (data / "val/dog/b.jpg").unlink(), "dog/b.jpg is gone"),
    "other content": (
        lambda data: shutil.copy(data / "train/cat/03.jpg", data / "train/cat/04.jpg"),
        "04.jpg has other content",
    ),
    "two swapped images": (
        lambda data: _swap(data / "train/cat/03.jpg", data / "train/cat/04.jpg"),
        "03.jpg has other content",
    ),
    "no train": (lambda data: shutil.rmtree(data / "train"), "a pack of train and val, the folder has val"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_that_changed_after_packing_is_refused_and_nothing_is_lost(
    data: Path, packed: Path, change: str
) -> None:
    before = files(packed)
    act, words = CHANGES[change]
    act(data)
    with pytest.raises(UsageError, match=re.escape(words)):
        pack_images(data, packed)
    assert files(packed) == before
    assert load_datasets(packed).train is not None, "the pack can still be used"


def test_a_folder_that_changed_while_its_pack_was_stopped_is_refused(data: Path, packed: Path) -> None:
    half = packed
    (half / PACK_INDEX).unlink()
    write_arrays(half / "train-00000.tar.npz", _part(data, half))
    (data / f"train/{LATIN_1}/00.jpg").unlink()
    with pytest.raises(UsageError, match=r"train: not what .*train-00000.tar was made of: .*/00.jpg is gone; delete"):
        pack_images(data, half)


def _part(data: Path, pack: Path) -> dict[str, "np.ndarray[tuple[int, ...], np.dtype[np.generic]]"]:
    """Return the part of an index that stands next to the first tar until all tars are written."""
    index = load_datasets(data).train
    assert index is not None
    size = (pack / "train-00000.tar").stat().st_size
    return {"paths": index.paths[:3], "tar_size": np.array(size)}


def test_a_finished_pack_of_the_same_images_is_left_as_it_is(data: Path, packed: Path) -> None:
    before = files(packed)
    assert pack_images(data, packed) == PackedImages(written=0, present=35)
    _touch(data)
    assert pack_images(data, packed) == PackedImages(written=0, present=35)
    assert files(packed) == before


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 700)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _make_a_folder(pack: Path) -> None:
    (pack / PACK_INDEX).unlink()
    (pack / PACK_INDEX).mkdir()


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "without its index": (lambda pack: (pack / PACK_INDEX).unlink(), "half a pack, without pack-index.npz"),
    "a torn tar": (lambda pack: _truncate(pack / "train-00001.tar"), "torn, or of another pack"),
    "a tar less": (lambda pack: (pack / "val-00000.tar").unlink(), "val-00000.tar: no such file, but pack-index.npz"),
    "a damaged index": (lambda pack: _flip(pack / PACK_INDEX), "pack-index.npz: damaged; copy it again"),
    "half an index": (lambda pack: _truncate(pack / PACK_INDEX), "pack-index.npz: damaged; copy it again"),
    "an empty index": (lambda pack: os.truncate(pack / PACK_INDEX, 0), "pack-index.npz: damaged; copy it again"),
    "an index that is a folder": (
        _make_a_folder,
        "cannot be read: Is a directory",
    ),
    "a later format": (
        lambda pack: write_arrays(pack / PACK_INDEX, {"format": np.array(2)}),
        "format 2, this release reads 1",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_pack_is_refused_in_one_line(packed: Path, fault: str) -> None:
    act, words = BROKEN[fault]
    act(packed)
    with pytest.raises(UsageError, match=re.escape(words)) as error:
        load_datasets(packed)
    assert str(packed) in str(error.value)
    assert "\n" not in str(error.value)


def test_damage_in_a_tar_is_found_when_the_image_is_read(packed: Path) -> None:
    train = load_datasets(packed).train
    assert train is not None
    place = train.place(5)
    assert isinstance(place, PackedImage)
    with Path(place.tar).open("r+b") as file:
        file.seek(place.offset + place.size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(
        TrainerError, match=r"05.jpg: not as it was packed: .*train-00001.tar is damaged, torn, or of an"
    ):
        read_image(place)


def test_a_tar_of_another_pack_with_the_same_size_is_found(data: Path, packed: Path, tmp_path: Path) -> None:
    _swap(data / "val/cat/0.jpeg", data / "val/cat/1.jpeg")
    pack_images(data, tmp_path / "other", tar_bytes=TAR_BYTES)
    shutil.copy(tmp_path / "other/val-00000.tar", packed / "val-00000.tar")
    val = load_datasets(packed).val
    with pytest.raises(
        TrainerError, match=r"cat/0.jpeg: not as it was packed: .*val-00000.tar is damaged, torn, or of"
    ):
        list(
            eval_batches(
                val, config=CONFIG.model_copy(update={"on_bad_image": "fail"}), rank=0, world_size=1, pin_memory=False
            )
        )


def test_verify_reads_a_pack(packed: Path) -> None:
    report = verify_pack(packed, workers=2)
    assert report.checked == 35
    assert {os.path.relpath(file.path, packed): file.reason for file in report.broken} == {
        "train/cat/02.jpg": "truncated, the end of the file is missing",
        "val/cat/2.jpeg": "empty, zero bytes",
    }
    _flip(packed / "train-00000.tar")
    damaged = verify_pack(packed, workers=2).broken
    assert sum("not as it was packed" in file.reason for file in damaged) == 1


def test_what_cannot_be_packed_is_refused_in_one_line(data: Path, packed: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("")
    cases = [
        (packed, tmp_path / "new", "a pack already; give the folder that it was made of"),
        (data, data / "pack", "lies in .*, the folder to pack; give another one"),
        (data, tmp_path / "full", r"holds thesis.txt, which is no part of a pack; give an empty folder"),
        (tmp_path / "gone", tmp_path / "new", "no such folder"),
        (tmp_path / "full", tmp_path / "new", "no val/ folder"),
    ]
    for source, to, words in cases:
        with pytest.raises(UsageError, match=words):
            pack_images(source, to)
    assert not (data / "pack").exists()
    (data / "train/dog/gone.jpg").symlink_to("nothing.jpg")
    with pytest.raises(TrainerError, match=r"gone.jpg: cannot be read: No such file or directory; check the disk"):
        pack_images(data, tmp_path / "new")
    (data / "train/dog/gone.jpg").unlink()
    pack_images(data, tmp_path / "new", tar_bytes=TAR_BYTES)
    assert files(tmp_path / "new") == files(packed)
