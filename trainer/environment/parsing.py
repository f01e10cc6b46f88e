"""The formats of npu-smi and of CANN's files: text in, values out.

Written from published outputs (npu-smi 22.0.0 to 25.5.2, 310P to A3). Huawei documents none of them as stable, so
a line that does not fit is left out instead of guessed at.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

_TITLE = re.compile(r"\|\s*npu-smi\s+(\S+)\s+Version:\s*(\S+)")
_USAGE = re.compile(r"(\d+)\s*/\s*(\d+)")


@dataclass(frozen=True)
class NpuProcess:
    """A process that holds an NPU."""

    npu: int
    chip: int
    pid: int
    name: str
    """Empty for a process of another container."""


@dataclass(frozen=True)
class Chip:
    """One NPU as `npu-smi info` shows it, in two rows."""

    npu: int
    """npu-smi's number of the card, which is not always torch's."""
    chip: int
    name: str
    health: str
    bus: str
    memory_used_mib: int | None = None
    memory_mib: int | None = None


@dataclass(frozen=True)
class NpuSmi:
    """The output of `npu-smi info`."""

    version: str | None
    chips: tuple[Chip, ...]
    processes: tuple[NpuProcess, ...]


def parse_npu_smi(text: str) -> NpuSmi:
    """Return the chips and processes of `npu-smi info`."""
    title = _TITLE.search(text)
    rows = [[cell.split() for cell in line.strip().strip("|").split("|")] for line in text.splitlines() if "|" in line]
    return NpuSmi(title[2] if title else None, tuple(_chips(rows)), tuple(_processes(rows)))


def _chips(rows: list[list[list[str]]]) -> Iterator[Chip]:
    """Read pairs of rows: a card's row has the health, and its chip's row below has the address on the bus."""
    for first, second in itertools.pairwise(rows):
        match first, second:
            case [[npu, name], [health], [*_]], [[chip, *_], [bus], [*usages]] if npu.isdigit() and _is_address(bus):
                # AICore(%), Memory-Usage(MB) and, on some chips, HBM-Usage(MB): a run fills the last of them.
                used = _USAGE.findall(" ".join(usages))
                memory = tuple(map(int, used[-1])) if used else (None, None)
                yield Chip(int(npu), int(chip), name, health, bus, *memory)


def _is_address(text: str) -> bool:
    return re.fullmatch(r"[0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f]", text) is not None


def _processes(rows: list[list[list[str]]]) -> Iterator[NpuProcess]:
    for row in rows:
        match row:
            case [[npu, chip], [pid], name, *_] if npu.isdigit() and chip.isdigit() and pid.isdigit():
                yield NpuProcess(int(npu), int(chip), int(pid), " ".join(name))


def parse_hccn(text: str) -> dict[int, str]:
    """Return the address of each NPU on the RoCE network, from /etc/hccn.conf: `address_3=192.168.1.11`."""
    return {int(npu): address for npu, address in re.findall(r"^\s*address_(\d+)\s*=\s*(\S+)\s*$", text, re.MULTILINE)}


def parse_version(text: str) -> str | None:
    """Return the version in CANN's `ascend_toolkit_install.info` or the driver's `version.info`: `version=8.5.0`."""
    match = re.search(r"^\s*[Vv]ersion\s*=\s*\[?\s*([0-9][^\s\]]*)", text, re.MULTILINE)
    return match[1] if match else None


def parse_settings(text: str) -> dict[str, str]:
    """Return the pairs of PYTORCH_NPU_ALLOC_CONF: `expandable_segments:True,max_split_size_mb:128`."""
    pairs = (part.partition(":") for part in text.split(",") if part.strip())
    return {name.strip(): value.strip() for name, _, value in pairs}
