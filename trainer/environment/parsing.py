"""The formats of npu-smi and of CANN's files: text in, values out.

Written from published outputs (npu-smi 22.0.0 to 25.5.2, 310P to A3). Huawei documents none of them as stable, so
a line that does not fit is left out instead of guessed at.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

_TITLE = re.compile(r"\|\s*npu-smi\s+(\S+)\s+Version:\s*(\S+)")
_USAGE = re.compile(r"(?<![\d.])(\d{1,9})\s*/\s*(\d{1,9})(?!\d)")
_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_LONGEST_WORD = 40
"""Characters of a name or a health: a longer one is not npu-smi's."""
# `npu-smi info -t ecc`: the errors of the memory since the driver was loaded, on chips with HBM and on others.
_ECC = re.compile(r"^(HBM|DDR) (Single|Double) Bit Error Count$")


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
    device: int | None = None
    """The number of its device file, /dev/davinciN, where npu-smi shows it."""
    use_percent: float | None = None
    """Of the AI cores."""
    temperature_c: float | None = None
    power_w: float | None = None
    """Of the card, which can have several chips; npu-smi shows it at the first one."""


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
            case (
                [[npu, name], [health], [*card]],
                [[chip, *device], [bus], [*usages]],
            ) if _are_counts(npu, chip) and _is_address(bus) and max(len(name), len(health)) <= _LONGEST_WORD:
                # AICore(%), Memory-Usage(MB) and, on some chips, HBM-Usage(MB): a run fills the last of them.
                used = _USAGE.findall(" ".join(usages))
                yield Chip(
                    npu=int(npu),
                    chip=int(chip),
                    name=name,
                    health=health,
                    bus=bus,
                    memory_used_mib=int(used[-1][0]) if used else None,
                    memory_mib=int(used[-1][1]) if used else None,
                    device=_count(device),
                    use_percent=_figure(usages[:1]),
                    temperature_c=_figure(card[1:2]),
                    power_w=_figure(card[:1]),
                )


def _are_counts(*words: str) -> bool:
    return all(re.fullmatch("[0-9]{1,9}", word) for word in words)


def _count(words: list[str]) -> int | None:
    return int(words[0]) if len(words) == 1 and _are_counts(*words) else None


def _figure(words: list[str]) -> float | None:
    """Return a number; None for `-` and `NA`, which stand for an unknown one."""
    return float(words[0]) if words and _NUMBER.fullmatch(words[0]) else None


def _is_address(text: str) -> bool:
    return re.fullmatch(r"[0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f]", text) is not None


def _processes(rows: list[list[list[str]]]) -> Iterator[NpuProcess]:
    for row in rows:
        match row:
            case [[npu, chip], [pid], name, *_] if _are_counts(npu, chip, pid):
                yield NpuProcess(int(npu), int(chip), int(pid), " ".join(name))


def parse_ecc(text: str) -> dict[int, dict[str, int]]:
    """Return the memory's errors of each chip of a card, `single` and `double`, from `npu-smi info -t ecc -i CARD`.

    Drivers differ: most end a chip's counts with its `Chip ID`; newer ones show one chip, without it. A chip with HBM
    has zeros for DDR.
    """
    chips: dict[int, dict[str, int]] = {}
    counts: dict[str, int] = {}
    for line in text.splitlines():
        name, _, value = (part.strip() for part in line.partition(":"))
        if not _are_counts(value):
            continue
        if match := _ECC.match(name):
            word = match[2].lower()
            counts[word] = counts.get(word, 0) + int(value)
        elif name == "Chip ID" and counts:
            chips[int(value)], counts = counts, {}
    return chips or ({0: counts} if counts else {})


def parse_topology(text: str) -> dict[int, tuple[int, ...]]:
    """Return the processors next to each NPU, from `npu-smi info -t topo`; nothing unless it names all of them.

    Only some chips have its last column, CPU Affinity: an A3's does not.
    """
    rows = [line.split() for line in text.splitlines()]
    header = next((row for row in rows if row[-2:] == ["CPU", "Affinity"]), [])
    names = header[:-2]
    near = {
        int(row[0][3:]): _processors(row[-1])
        for row in rows
        if row and row is not header and len(row) == len(header) and row[0] in names
        if re.fullmatch("NPU[0-9]{1,4}", row[0])
    }
    return near if len(near) == len(names) and all(near.values()) else {}


def _processors(text: str) -> tuple[int, ...]:
    """Return the numbers of a list such as `0-23,48`, ascending; none if it is not one."""
    if not re.fullmatch(r"[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?){0,63}", text):
        return ()
    ends = [[int(end) for end in part.split("-")] for part in text.split(",")]
    return tuple(sorted({number for part in ends for number in range(part[0], part[-1] + 1)}))


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
