"""Pickled files as plain values: no code of a file is ever run.

torch's weights-only reader builds tensors, numbers, texts and containers, and refuses every other name. Training
programs store more next to the tensors: their arguments, numpy scalars, counters. These names, on a closed list, become
blank values here. The classes behind them are never imported, so nothing of theirs can run.
"""

import pickle
import re
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.shared.errors import UsageError
from trainer.shared.text import visible

# torch.save writes a zip archive; before 1.6 it wrote bare pickles, of protocol 2.
PICKLED = (b"PK", b"\x80")
READABLE_FILES = "expected weights of ours (.safetensors), timm's or Cadene's, or a checkpoint of the seed"
# The first bytes of files that users take for weights, and what to do with them.
_OTHER_FILES = {
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"\xfd7zXZ": "an xz archive; unpack it first",
    b"BZh": "a bzip2 archive; unpack it first",
    b"version https://git-lfs": "a pointer of git-lfs, not the file itself; fetch the file with `git lfs pull`",
    b"<": "a page of a web site, not the file itself; download it again",
    b"\x89HDF": "an HDF5 file of Keras; convert it to PyTorch's format first",
    b"": "an empty file; copy or download it again",
}
_HEAD_BYTES = 512
# Any of these can end torch.load on a damaged file. A size that a damaged file names can ask for too much memory.
_DAMAGE = (
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


class Blank:
    """The place of a value that holds no tensor: it takes any state and keeps nothing."""

    def __new__(cls, *_arguments: object) -> "Blank":
        """Return a blank value, whatever the file's arguments are."""
        return super().__new__(cls)

    def __init__(self, *_arguments: object) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        pass


def _npu_tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_about_npu: Any) -> Tensor:
    """Return a tensor that old versions of torch_npu saved from an NPU; its storage is a CPU's, in the plain layout."""
    tensor: Tensor = torch._utils._rebuild_tensor(storage, offset, size, stride)
    return tensor


def _default_dict(*_factory: object) -> dict[Any, Any]:
    return {}


_STAND_INS: dict[str, Callable[..., Any]] = {
    # torch_npu/utils/storage.py of 1.8 to 2.x, with and without the last argument, and the type of that argument.
    "torch_npu.utils.storage._rebuild_npu_tensor": _npu_tensor,
    "torch_npu.npu._format.Format": Blank,
    "argparse.Namespace": Blank,
    "builtins.list": Blank,  # the factory of a defaultdict
    "builtins.int": Blank,
    "builtins.float": Blank,
    "builtins.dict": Blank,
    "collections.defaultdict": _default_dict,
    "numpy.dtype": Blank,
    "numpy.ndarray": Blank,
    "numpy.core.multiarray.scalar": Blank,
    "numpy._core.multiarray.scalar": Blank,
    "numpy.core.multiarray._reconstruct": Blank,
    "numpy._core.multiarray._reconstruct": Blank,
}


def read_pickle(path: Path) -> object:
    """Return the content of a file of torch.save: tensors on the CPU, and plain values.

    Raises:
        UsageError: the file is damaged, is of another kind, or holds objects that only code can rebuild.
        OSError: the file cannot be read.
    """
    # Opened here: torch goes by the name's end, and would take a pickle named .safetensors for what it claims to be.
    with path.open("rb") as file:
        _refuse_other_files(path, file.read(_HEAD_BYTES))
        file.seek(0)
        try:
            with warnings.catch_warnings(), torch.serialization.safe_globals(_globals()):
                # The errors below report a fault of the file once.
                warnings.simplefilter("ignore", UserWarning)
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise UsageError(f"weights {path}: {_refusal(str(error))}") from error
        except _DAMAGE as error:
            if "TorchScript" in str(error):
                raise UsageError(
                    f"weights {path}: a TorchScript archive, which holds code; save the state_dict() of its model"
                ) from error
            raise UsageError(
                f"weights {path}: damaged or not a weight file ({one_line(error)}); copy or download it again"
            ) from error


def one_line(error: Exception) -> str:
    """Return the first sentence of an error's text, without the place in torch's sources."""
    text = re.sub(r"^\[enforce fail at [^]]*\] \. ", "", str(error).strip())
    line = (text.splitlines() or [""])[0].split(". ")[0].partition("  (Could this error message")[0]
    return visible(line.rstrip(".")) or type(error).__name__


def _globals() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    return [(stand_in, name) for name, stand_in in _STAND_INS.items()]


def _refuse_other_files(path: Path, head: bytes) -> None:
    if head.startswith(PICKLED):
        return
    for start, text in _OTHER_FILES.items():
        if (start and head.startswith(start)) or head == start:
            raise UsageError(f"weights {path}: {text}")
    if head[257:262] == b"ustar":
        raise UsageError(f"weights {path}: a tar archive; unpack it first")
    raise UsageError(f"weights {path}: not a weight file; {READABLE_FILES}")


def _refusal(message: str) -> str:
    name = re.search(r"GLOBAL (\S+)", message)
    content = "not a file of plain tensors" if name is None else f"holds {visible(name[1])}"
    return f"{content}, and code in files is never run; save the network's state_dict() by itself"
