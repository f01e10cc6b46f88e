"""Which devices of this machine the trainer can use, from /dev and the environment.

The supervisor must not load torch (seconds, and a context on a device), so it counts device files, as the container
runtime and the device plugin do.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainer.shared.errors import UsageError

DeviceKind = Literal["npu", "cuda", "cpu"]

_FILES: dict[str, str] = {"npu": "davinci", "cuda": "nvidia"}
FOLDER_VARIABLE = "PNAS_DEVICE_FILES"
"""The variable with the folder of the device files, if it is not /dev; emulated devices have their own."""
VISIBLE_VARIABLES: dict[str, str] = {"npu": "ASCEND_RT_VISIBLE_DEVICES", "cuda": "CUDA_VISIBLE_DEVICES"}

NOT_ASCENDING = "torch_npu sees no NPU unless the numbers ascend: sort them"


@dataclass(frozen=True)
class Visible:
    """The devices of one kind. `ids` are physical, in the order in which torch numbers them; empty for a CPU."""

    kind: DeviceKind
    ids: tuple[int, ...]
    found_in: str = ""


def visible_devices(
    kind: Literal["auto", "npu", "cuda", "cpu"], environ: Mapping[str, str], dev: Path | None = None
) -> Visible:
    """Return the devices of `kind`; `auto` takes NPUs if there are any, else CUDA devices, else the CPU.

    Args:
        dev: The folder of the device files; PNAS_DEVICE_FILES or /dev if None.

    Raises:
        UsageError: ASCEND_RT_VISIBLE_DEVICES or CUDA_VISIBLE_DEVICES names a device twice; NPUs do not ascend.
    """
    dev = dev or Path(environ.get(FOLDER_VARIABLE, "/dev"))
    if kind == "auto":
        kind = "npu" if _files("npu", dev) else "cuda" if _files("cuda", dev) else "cpu"
    if kind == "cpu":
        return Visible("cpu", (), "the CPU")
    ids = _files(kind, dev)
    variable = VISIBLE_VARIABLES[kind]
    if variable not in environ:
        return Visible(kind, ids, f"{dev}/{_FILES[kind]}*")
    chosen = _chosen(environ[variable], ids)
    if len(set(chosen)) != len(chosen):
        raise UsageError(f"{variable}={environ[variable]} names a device twice: name each once")
    if kind == "npu" and list(chosen) != sorted(chosen):
        raise UsageError(f"{variable}={environ[variable]}: {NOT_ASCENDING}")
    return Visible(kind, chosen, f"{variable}={environ[variable]}")


def _files(kind: str, dev: Path) -> tuple[int, ...]:
    matches = (re.fullmatch(_FILES[kind] + r"([0-9]+)", path.name) for path in dev.iterdir())
    return tuple(sorted(int(match[1]) for match in matches if match))


def _chosen(text: str, ids: tuple[int, ...]) -> tuple[int, ...]:
    """Read logical numbers like the runtimes, up to the first other word; of UUIDs, for CUDA, only the count."""
    parts = [part.strip() for part in text.split(",")]
    if parts[0].startswith(("GPU-", "MIG-")):
        return ids[: len(parts)]
    chosen = []
    for part in parts:
        if not (part.isascii() and part.isdigit()) or int(part) >= len(ids):
            break
        chosen.append(ids[int(part)])
    return tuple(chosen)
