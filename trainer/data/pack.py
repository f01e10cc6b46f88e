"""A pack: the images of a data folder in a few large tars, with an index of where each image lies and what it was.

The tars are plain ones, uncompressed: `tar x` gives the data folder back, and WebDataset, timm and Python's tarfile
read them. The index is a file next to them, so that any image is one read away. It is written last: a folder with tars
and without it is half a pack. `packing` writes packs; `content` reads the images.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.arrays import arrays_in
from trainer.data.content import PackedImage
from trainer.shared.errors import UsageError
from trainer.shared.files import read_file, reading, why_no_file
from trainer.shared.program import TRAINER
from trainer.shared.runs import PACK_INDEX

PACK_FORMAT = 1
HASHES = "SHA256SUMS"
"""The file with the hash of each tar, for `sha256sum --check`."""
PACK_FILES = re.compile(rf"\.?((train|val)-\d{{5}}\.tar(\.npz)?|{HASHES}|{re.escape(PACK_INDEX)})(\.partial)?")
"""The names of a pack's files, finished and half written."""
_ONCE_MORE = f"copy it again, or delete this pack and make it again (`{TRAINER} data pack`)"


@dataclass(frozen=True)
class PackedSplit:
    """The images of one split: where they lie, and what they were in the folder that was packed.

    Attributes:
        folder: the split's folder, if the pack's folder held it.
        paths: (N,) encoded paths relative to `folder`.
        labels: (N,) int64, indices into the pack's classes.
        tars: the files.
        firsts: (tars,) int64, the first image of each tar.
        offsets: (N,) int64, of an image's first byte in its tar.
        sizes: (N,) int64, in bytes.
        checksums: (N,) uint32, CRC-32 of an image's bytes.
        modified_ns: (N,) int64, when the image's file was changed last.
    """

    folder: Path
    paths: NDArray[np.bytes_]
    labels: NDArray[np.int64]
    tars: Sequence[str]
    firsts: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    checksums: NDArray[np.uint32]
    modified_ns: NDArray[np.int64]

    def place(self, sample: int) -> PackedImage:
        """Return where one image lies."""
        return PackedImage(
            f"{self.folder}/{os.fsdecode(self.paths[sample])}",
            self.tars[int(np.searchsorted(self.firsts, sample, side="right")) - 1],
            int(self.offsets[sample]),
            int(self.sizes[sample]),
            int(self.checksums[sample]),
        )


@dataclass(frozen=True)
class Pack:
    """A whole pack: the names of its classes, and its splits by name."""

    classes: tuple[str, ...]
    splits: Mapping[str, PackedSplit]


def read_pack(folder: Path) -> Pack | None:
    """Return the pack in a folder; None if it holds none.

    Raises:
        UsageError: the pack is half written, torn, damaged, or has files of another pack.
    """
    with reading(folder):
        index = folder / PACK_INDEX
        if not index.exists():
            _refuse_half(folder)
            return None
        arrays = arrays_in(read_file(index))
        if arrays is None:
            raise UsageError(f"{index}: damaged; {_ONCE_MORE}")
        if int(arrays["format"]) != PACK_FORMAT:
            raise UsageError(f"{index}: format {arrays['format']}, this release reads {PACK_FORMAT}; {_ONCE_MORE}")
        pack = Pack(
            tuple(map(os.fsdecode, arrays["classes"].tolist())),
            {name: _split(folder, name, arrays) for name in ("train", "val") if f"{name}_paths" in arrays},
        )
        tars = [tar for split in pack.splits.values() for tar in split.tars]
        for tar, size in zip(tars, arrays["tar_sizes"].tolist(), strict=True):
            _check_tar(Path(tar), size)
    return pack


def _split(folder: Path, name: str, arrays: Mapping[str, NDArray[Any]]) -> PackedSplit:
    columns = ("paths", "labels", "firsts", "offsets", "sizes", "checksums", "modified_ns")
    tars = [str(folder / tar_name(name, number)) for number in range(len(arrays[f"{name}_firsts"]))]
    return PackedSplit(folder / name, tars=tars, **{column: arrays[f"{name}_{column}"] for column in columns})


def tar_name(split: str, number: int) -> str:
    """Return the name of a split's tar; the first has the number 0."""
    return f"{split}-{number:05d}.tar"


def _check_tar(tar: Path, size: int) -> None:
    if not tar.is_file():
        raise UsageError(f"{tar}: {why_no_file(tar)}, but {PACK_INDEX} names it; {_ONCE_MORE}")
    actual = tar.stat().st_size
    if actual != size:
        raise UsageError(f"{tar}: {actual:,} bytes, {PACK_INDEX} says {size:,}: torn, or of another pack; {_ONCE_MORE}")


def _refuse_half(folder: Path) -> None:
    if not folder.is_dir() or (folder / "val").is_dir() or (folder / "train").is_dir():
        return
    if any(PACK_FILES.fullmatch(entry.name) for entry in folder.iterdir()):
        raise UsageError(
            f"{folder}: half a pack, without {PACK_INDEX}: give the command that packs it once more"
            f" (`{TRAINER} data pack FOLDER --to {folder}`), it continues; or copy that file"
        )
