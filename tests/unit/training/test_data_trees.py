"""Odd folder trees: training, `data verify` and a plain walk see the same images, and the rest is counted."""

import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image, features

from trainer.commands.data import data_app
from trainer.data.decode import FORMATS
from trainer.data.index import load_datasets, load_split
from trainer.data.tree import IMAGE_SUFFIXES, SplitTree, read_class, read_split, read_tree
from trainer.data.verify import verify_images
from trainer.shared.errors import TrainerError

HIDDEN, NO_SUFFIX, NO_CLASS = "hidden entries", "no image and without a suffix", "outside of a class folder"
DEVICE, BROKEN, LOOP = "pipes and devices", "broken links", "links to a folder around them"
AGAIN = "further names of an image"
TEXT_SUFFIXES = {".txt", ".json", ".gz", ".tar", ".db", ".ini", ".part"}
LATIN_1 = os.fsdecode(b"caf\xe9")
CONTROL = "a\nerror: lost\r\x1b[2J"


@dataclass(frozen=True)
class Tree:
    """A folder `train`, next to a folder `outside` with x.jpg, y.jpg and deep/z.jpg.

    An entry is an image, unless another suffix or `= text` says that it is text. `a -> b` is a link, `a/` an empty
    folder, `a = png` an image of this format.
    """

    entries: tuple[str, ...]
    images: tuple[str, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)


def tree(*entries: str, images: str | tuple[str, ...] | None = None, **left_out: int) -> Tree:
    """Return a tree; its images are all entries, unless `images` names others; keywords are kinds of other files."""
    seen = entries if images is None else images.split() if isinstance(images, str) else images
    seen = [image.partition(" = ")[0] for image in seen]
    kinds = {"hidden": HIDDEN, "plain": NO_SUFFIX, "loose": NO_CLASS, "device": DEVICE, "broken": BROKEN}
    kinds |= {"loop": LOOP, "again": AGAIN}
    return Tree(entries, tuple(seen), {kinds.get(kind, f".{kind}"): count for kind, count in left_out.items()})


_BOTH = ("cat/a.jpg", "dog/b.jpg")
TREES = {
    # Suffixes.
    "usual": tree("cat/a.JPEG", "cat/b.jpg", "dog/c.png"),
    "jfif": tree("cat/a.jfif", "cat/b.JFIF"),
    "jpe": tree("cat/a.jpe"),
    "webp": tree("cat/a.webp = webp"),
    "gif": tree("cat/a.gif = gif"),
    "avif": tree("cat/a.avif = avif", images="cat/a.avif"),
    "bmp and dib": tree("cat/a.bmp = bmp", "cat/b.dib = dib", images="cat/a.bmp cat/b.dib"),
    "tiff": tree("cat/a.tif = tiff", "cat/b.TIFF = tiff", images="cat/a.tif cat/b.TIFF"),
    "jpeg 2000": tree("cat/a.jp2 = jpeg2000", images="cat/a.jp2"),
    "netpbm": tree("cat/a.ppm = ppm", "cat/b.pnm = ppm", images="cat/a.ppm cat/b.pnm"),
    "no suffix, an image": tree("cat/a", "cat/b = png", images="cat/a cat/b"),
    "no suffix, each format": tree(
        *(f"cat/{kind} = {kind}" for kind in ("bmp", "gif", "tiff", "webp", "ppm", "jpeg2000", "avif")),
        images="cat/avif cat/bmp cat/gif cat/jpeg2000 cat/ppm cat/tiff cat/webp",
    ),
    "no suffix, text": tree("cat/a.jpg", "cat/LICENSE = text", "cat/README = text", images="cat/a.jpg", plain=2),
    "a number for a suffix": tree("cat/frame.0001", "cat/v1.5 = text", images="cat/frame.0001", plain=1),
    "words after a dot": tree(
        "cat/Dr. Smith and a cat", "cat/No. 5 = text", images=("cat/Dr. Smith and a cat",), plain=1
    ),
    "other suffixes": tree("cat/a.jpg", "cat/b.txt", "cat/c.json", "cat/d.TXT", images="cat/a.jpg", txt=2, json=1),
    "an image with a suffix of text": tree("cat/a.jpg", "cat/b.txt = png", images="cat/a.jpg", txt=1),
    "text with a suffix of an image": tree("cat/a.jpg", "cat/b.jpg = text", images="cat/a.jpg cat/b.jpg"),
    "formats that are not read": tree("cat/a.jpg", "cat/b.heic", "cat/c.eps", images="cat/a.jpg", heic=1, eps=1),
    "half downloads": tree(
        "cat/a.jpg", "cat/b.jpg.part", "cat/c.jpg~ = text", images="cat/a.jpg", part=1, **{"jpg~": 1}
    ),
    "an editor's copy": tree(
        "cat/a.jpg", "cat/a.jpg~ = jpeg", "cat/b~ = png", images="cat/a.jpg cat/b~", **{"jpg~": 1}
    ),
    "two suffixes": tree("cat/a.jpg.jpg", "cat/b.txt.jpg", "cat/c.tar.gz", images="cat/a.jpg.jpg cat/b.txt.jpg", gz=1),
    "a dot at the end": tree("cat/a. = png", "cat/b.jpg", images="cat/a. cat/b.jpg"),
    "a suffix in capitals": tree("cat/a.JPG", "cat/b.PnG = png", images="cat/a.JPG cat/b.PnG"),
    # Hidden entries and other programs' files.
    "notebook folder": tree("cat/a.jpg", ".ipynb_checkpoints/x.jpg", images="cat/a.jpg", hidden=1),
    "notebook folder in a class": tree("cat/a.jpg", "cat/.ipynb_checkpoints/x.jpg", images="cat/a.jpg", hidden=1),
    "macOS": tree("cat/a.jpg", "cat/._a.jpg", "cat/.DS_Store = text", ".DS_Store = text", images="cat/a.jpg", hidden=3),
    "Windows": tree("cat/a.jpg", "cat/Thumbs.db", "cat/desktop.ini", images="cat/a.jpg", db=1, ini=1),
    "a partial copy": tree("cat/a.jpg", "cat/.a.jpg.partial = text", images="cat/a.jpg", hidden=1),
    "tars next to the classes": tree("cat/a.jpg", "cat.tar", "dog.tar", images="cat/a.jpg", tar=2),
    "images outside of a class": tree("cat/a.jpg", "b.jpg", "c.png = png", images="cat/a.jpg", loose=2),
    "a list next to the classes": tree("cat/a.jpg", "labels.txt", images="cat/a.jpg", txt=1),
    # Folders in a class.
    "nested": tree("cat/a.jpg", "cat/images/b.jpg", "cat/images/deep/c.jpg"),
    "only nested": tree("cat/images/a.jpg", "dog/images/b.jpg"),
    "empty nested folder": tree("cat/a.jpg", "cat/none/", images="cat/a.jpg"),
    "twenty levels": tree("cat/" + "deep/" * 20 + "a.jpg"),
    "a folder named like an image": tree("cat/a.jpg/b.jpg", "cat/c.jpg"),
    "a class named like an image": tree("cat.jpg/a.jpg", "dog/b.jpg"),
    "one name in two folders": tree("cat/1/a.jpg", "cat/2/a.jpg", "dog/a.jpg"),
    # Names.
    "a class that is not UTF-8": tree(f"{LATIN_1}/a.jpg", "dog/b.jpg"),
    "an image that is not UTF-8": tree(f"cat/{LATIN_1}.jpg", "cat/b.jpg"),
    "a suffix that is not UTF-8": tree("cat/a.jpg", f"cat/b.{LATIN_1} = text", images="cat/a.jpg", plain=1),
    "control characters in an image": tree(f"cat/{CONTROL}.jpg", "cat/b.jpg"),
    "control characters in a class": tree(f"{CONTROL}/a.jpg", "dog/b.jpg"),
    "spaces": tree(" cat /a b.jpg", " cat / .jpg"),
    "backslash, quotes and signs": tree("c\\at/a'\"$`*?[b].jpg", "-dog/-b.jpg"),
    "other scripts": tree("猫/あ.jpg", "кот/ё.jpg", "gato\u0301/n\u0303.jpg"),
    "both forms of é": tree("cat/\u00e9.jpg", "cat/e\u0301.jpg"),
    "the longest name": tree(f"cat/{'a' * 251}.jpg"),
    "cases of one word": tree("Cat/a.jpg", "cat/a.jpg"),
    # Links.
    "class link": tree("cat/a.jpg", "dog -> ../outside", images="cat/a.jpg dog/deep/z.jpg dog/x.jpg dog/y.jpg"),
    "image link": tree("cat/a.jpg", "cat/b.jpg -> ../../outside/x.jpg", images="cat/a.jpg cat/b.jpg"),
    "absolute link": tree("cat/b.jpg -> {data}/outside/x.jpg", images="cat/b.jpg"),
    "folder link": tree(
        "cat/a.jpg", "cat/more -> ../../outside", images="cat/a.jpg cat/more/deep/z.jpg cat/more/x.jpg cat/more/y.jpg"
    ),
    "chain of links": tree("cat/1 -> 2", "cat/2 -> {data}/outside/deep", images="cat/1/z.jpg"),
    "loop": tree("cat/a.jpg", "cat/loop -> .", images="cat/a.jpg", loop=1),
    "two loops": tree(*_BOTH, "cat/loop -> .", "cat/loop2 -> ..", images=_BOTH, loop=2),
    "loop below": tree("cat/1/2/a.jpg", "cat/1/2/up -> ../..", images="cat/1/2/a.jpg", loop=1),
    "loop of two": tree(
        "cat/1/a.jpg", "cat/2/b.jpg", "cat/1/2 -> ../2", "cat/2/1 -> ../1", images="cat/1/a.jpg cat/2/b.jpg"
    ),
    "class loop": tree(*_BOTH, "all -> .", "top -> ..", "root -> /", images=_BOTH, loop=3),
    "loop through outside": tree("cat/out -> {data}/loops/ring", images="cat/out/r.jpg", loop=1),
    "a link to itself": tree("cat/a.jpg", "cat/self -> self", images="cat/a.jpg", broken=1),
    "broken links": tree("cat/a.jpg", "cat/gone -> nowhere", "gone -> nowhere", images="cat/a.jpg", broken=2),
    "broken image link": tree("cat/a.jpg", "cat/gone.jpg -> nowhere.jpg", images="cat/a.jpg cat/gone.jpg"),
    "a second name in the class": tree("cat/b.jpg", "cat/a.jpg -> b.jpg", images="cat/b.jpg", again=1),
    "two links to one image": tree(
        "cat/a.jpg -> {data}/outside/x.jpg", "cat/b.jpg -> {data}/outside/x.jpg", images="cat/a.jpg", again=1
    ),
    "two links to one folder": tree(
        "cat/1 -> {data}/outside/deep", "cat/2 -> {data}/outside/deep", images="cat/1/z.jpg"
    ),
    "a folder and its parent": tree(
        "cat/1 -> {data}/outside/deep", "cat/2 -> {data}/outside", images="cat/1/z.jpg cat/2/x.jpg cat/2/y.jpg"
    ),
    "sibling in the class": tree("cat/z/a.jpg", "cat/a -> z", images="cat/z/a.jpg"),
    "one image in two classes": tree("cat/a.jpg", "dog/a.jpg -> ../cat/a.jpg", images="cat/a.jpg dog/a.jpg"),
    "one folder, two classes": tree("cat/a.jpg", "dog -> cat", images="cat/a.jpg dog/a.jpg"),
    "an annex": tree("cat/a.jpg -> ../../annex/SHA1-x", "cat/b.jpg", images="cat/a.jpg cat/b.jpg"),
    "link to text": tree("cat/a.jpg", "cat/b.txt -> ../../outside/x.jpg", images="cat/a.jpg", txt=1),
    "hard link": tree("cat/a.jpg", "cat/b.jpg => cat/a.jpg", images="cat/a.jpg cat/b.jpg"),
    # What is no file.
    "pipe": tree("cat/a.jpg", "cat/b.jpg | pipe", images="cat/a.jpg", device=1),
    "socket": tree("cat/a.jpg", "cat/b.jpg | socket", images="cat/a.jpg", device=1),
    "device": tree("cat/a.jpg", "cat/b.jpg -> /dev/zero", images="cat/a.jpg", device=1),
}


def write(path: Path, kind: str = "JPEG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "text":
        path.write_text("no image\n")
    else:
        with path.open("wb") as file:
            Image.new("RGB", (8, 8), (200, 30, 90)).save(file, kind)


def add(data: Path, entry: str) -> None:
    """Make one entry of a tree's train/."""
    separator = next((word for word in (" => ", " -> ", " | ", " = ") if word in entry), "")
    name, _, value = entry.partition(separator) if separator else (entry, "", "")
    path = data / "train" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if separator == " => ":
        path.hardlink_to(data / "train" / value)
    elif separator == " -> ":
        path.symlink_to(value.format(data=data))
    elif value == "pipe":
        os.mkfifo(path)
    elif value == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(path))
    elif name.endswith("/"):
        path.mkdir()
    else:
        write(path, value or ("text" if path.suffix in TEXT_SUFFIXES else "JPEG"))


def build(tree: Tree, data: Path) -> Path:
    for name in ("outside/x.jpg", "outside/y.jpg", "outside/deep/z.jpg", "annex/SHA1-x", "loops/ring/r.jpg"):
        write(data / name)
    (data / "loops/ring/back").symlink_to("..")
    for entry in tree.entries:
        add(data, entry)
    for name in {image.split("/")[0] for image in tree.images}:
        write(data / "val" / name / "v.jpg")
    return data


def plain_walk(split: Path) -> Iterator[tuple[str, str]]:
    """Yield the class and the real path of each image, as a short program of a user would find them."""
    for class_folder in split.iterdir():
        if class_folder.name.startswith(".") or not class_folder.is_dir():
            continue
        if split.resolve().is_relative_to(class_folder.resolve()):
            continue
        read = set()
        for folder, folders, files in os.walk(class_folder, followlinks=True):
            real = Path(folder).resolve()
            if real in read or (class_folder.resolve() != real and class_folder.resolve().is_relative_to(real)):
                folders.clear()
                continue
            read.add(real)
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                path = Path(folder, name)
                if not name.startswith(".") and _is_image(path):
                    yield class_folder.name, str(path.resolve() if path.exists() else path)


def _is_image(path: Path) -> bool:
    if path.exists() and not path.is_file():
        return False
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return True
    number_or_words = path.suffix in {"", "."} or path.suffix[1:].isdigit() or " " in path.suffix
    try:
        with Image.open(path):
            return number_or_words
    except OSError:
        return False


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def count(tree: SplitTree) -> int:
    return sum(len(images) for images in tree.images)


@pytest.mark.parametrize("name", TREES)
def test_training_verify_and_a_plain_walk_see_the_same_images(name: str, tmp_path: Path) -> None:
    tree, data = TREES[name], build(TREES[name], tmp_path / "data")
    index = load_split(data, "train")
    paths = [index.path(sample) for sample in range(len(index))]
    assert sorted(str(path.relative_to(index.root)) for path in paths) == sorted(tree.images)
    labels = [index.classes[label] for label in index.labels]
    assert labels == [str(path.relative_to(index.root)).split("/")[0] for path in paths]
    real = [(label, str(path.resolve() if path.exists() else path)) for label, path in zip(labels, paths, strict=True)]
    assert sorted(real) == sorted(set(plain_walk(index.root)))
    assert index.left_out == tree.left_out
    verified = read_tree(data)
    assert verified[data / "train"].left_out == tree.left_out
    datasets = load_datasets(data)
    assert sum(map(count, verified.values())) == len(datasets.train or ()) + len(datasets.val)
    assert count(read_split(index.root)) == len(index)
    assert sum(count(read_class(index.root / label)) for label in index.classes) == len(index)


def test_verify_reads_each_image_of_the_trees(tmp_path: Path) -> None:
    trees: dict[Path, SplitTree] = {}
    for number, tree in enumerate(TREES.values()):
        trees |= read_tree(build(tree, tmp_path / str(number)))
    report = verify_images(trees, workers=2)
    assert report.checked == sum(map(count, trees.values()))
    assert {Path(file.path).name for file in report.broken} == {"b.jpg", "gone.jpg"}
    assert len(report.left_out) == sum(bool(tree.left_out) for tree in trees.values())


def test_verify_shows_names_as_they_are_and_what_it_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = build(tree(f"cat/{LATIN_1}.jpg = text", f"cat/{CONTROL}.jpg = text", "cat/a.txt"), tmp_path / "data")
    with pytest.raises(TrainerError, match="2 of 2 images cannot be trained on"):
        data_app(["verify", str(data / "train")], result_action="return_value")
    train = data / "train"
    assert capsys.readouterr().out.splitlines() == [
        f"{train}/cat/a\\nerror: lost\\r\\x1b[2J.jpg: not an image",
        f"{train}/cat/caf\\xe9.jpg: not an image",
        f"note: left out of {train}: .txt 1",
        f"{train}: 2 images read, 2 broken",
    ]


@pytest.mark.parametrize("path", ["", "cat"])
def test_a_folder_of_loose_images_is_read_as_one_class(path: str, tmp_path: Path) -> None:
    for name in ("a.jpg", "1/b.jpg", "2/b.jpg"):
        write(tmp_path / path / name)
    (tree,) = read_tree(tmp_path / path).values()
    assert tree.images == [[b"1/b.jpg", b"2/b.jpg", b"a.jpg"]]


def test_folders_that_training_does_not_read_or_refuses_are_counted(tmp_path: Path) -> None:
    for name in ("train/cat/a.jpg", "val/cat/a.jpg", "test/a.jpg", ".git/a.jpg"):
        write(tmp_path / name)
    (tmp_path / "train/dog").mkdir()
    assert {path.name: dict(tree.left_out) for path, tree in read_tree(tmp_path).items()} == {
        "train": {"class folders without an image, which training refuses": 1},
        "val": {},
        tmp_path.name: {"folders that are neither train/ nor val/": 1},
    }


def test_every_format_that_is_read_has_its_suffixes() -> None:
    Image.init()
    readable = {suffix for suffix, kind in Image.registered_extensions().items() if kind in {*FORMATS, "MPO"}}
    assert readable <= set(IMAGE_SUFFIXES)
    assert readable == set(IMAGE_SUFFIXES) or not features.check("avif")
