"""The devices and the host of this node at a moment: use, memory, temperature, power, errors of the memory.

A reader returns figures by device (`npu:0`, `cuda:0`, or `cpu` for the host), and raises OSError without an answer.
NPUs are read by npu-smi, GPUs by NVIDIA's NVML, the host by psutil. The readers of NPUs and GPUs were written from
published outputs and from NVML's documentation; they have not run on a real device.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import psutil

from trainer.environment.npu_smi import NpuSmiProgram
from trainer.environment.parsing import Chip, parse_ecc, parse_npu_smi

Figures = Mapping[str, Any]
"""Of one device; a figure that is unknown is left out."""
Reader = Callable[[], Mapping[str, Figures]]
_Row = TypeVar("_Row")
HOST = "cpu"
"""The name of the host among the devices."""
_MIB = 1 << 20


class NpuReader:
    """Reads this node's NPUs by `npu-smi info`; the memory's errors of one card at each call, as each is a program."""

    def __init__(self, program: NpuSmiProgram, ids: Sequence[int]) -> None:
        """`ids` are the numbers of the device files, in the order of the local ranks."""
        self._program = program
        self._ids = ids
        self._turn = 0

    def __call__(self) -> Mapping[str, Figures]:
        """Return the figures of this job's NPUs.

        Raises:
            OSError: npu-smi does not answer, or in another form.
        """
        chips = own_chips(parse_npu_smi(self._program.ask("info")).chips, self._ids)
        if not chips:
            raise OSError(f"its table names no NPU {', '.join(map(str, self._ids))} in a known form")
        cards = sorted({chip.npu for chip in chips.values()})
        card = cards[self._turn % len(cards)]
        self._turn += 1
        try:
            errors = parse_ecc(self._program.ask("info", "-t", "ecc", "-i", str(card)))
        except OSError:  # a chip or a driver that does not count them
            errors = {}
        return {
            f"npu:{index}": _npu_figures(chip, errors.get(chip.chip, {}) if chip.npu == card else {})
            for index, chip in chips.items()
        }


def own_chips(chips: Sequence[Chip], ids: Sequence[int]) -> Mapping[int, Chip]:
    """Return the chip of each local rank; nothing if the chips do not fit the device files `ids`.

    npu-smi shows the number of the device file for some chips. For others it is the card's number, if a card has one
    chip. A container can have other numbers: then as many chips as files have the same order.
    """
    single = all(chip.chip == 0 for chip in chips)
    return by_local_rank([(chip.npu if chip.device is None and single else chip.device, chip) for chip in chips], ids)


def by_local_rank(numbered: Sequence[tuple[int | None, _Row]], ids: Sequence[int]) -> Mapping[int, _Row]:
    """Return npu-smi's row of each local rank, like `own_chips`."""
    rows = dict(numbered)
    if all(number in rows for number in ids):
        return {index: rows[number] for index, number in enumerate(ids)}
    return dict(enumerate(row for _, row in numbered)) if len(numbered) == len(ids) else {}


def _npu_figures(chip: Chip, errors: Mapping[str, int]) -> Figures:
    return _known(
        name=chip.name,
        health=chip.health,
        use_percent=chip.use_percent,
        memory_used_mib=chip.memory_used_mib,
        memory_mib=chip.memory_mib,
        temperature_c=chip.temperature_c,
        power_w=chip.power_w,
        ecc_corrected=errors.get("single"),
        ecc_uncorrected=errors.get("double"),
    )


class CudaReader:
    """Reads this node's GPUs by NVML."""

    def __init__(self, ids: Sequence[int]) -> None:
        """`ids` are the numbers of the device files, in the order of the local ranks."""
        self._ids = ids
        # Typed as Any: it has no types.
        self._nvml: Any = importlib.import_module("pynvml")

    def __call__(self) -> Mapping[str, Figures]:
        """Return the figures of this job's GPUs.

        Raises:
            OSError: NVML cannot be used.
        """
        nvml = self._nvml
        try:
            nvml.nvmlInit()
            handles = [nvml.nvmlDeviceGetHandleByIndex(number) for number in range(nvml.nvmlDeviceGetCount())]
            files = {nvml.nvmlDeviceGetMinorNumber(handle): handle for handle in handles}
        except nvml.NVMLError as error:
            raise OSError(str(error)) from error
        return {f"cuda:{index}": self._figures(files[n]) for index, n in enumerate(self._ids) if n in files}

    def _figures(self, handle: object) -> Figures:
        nvml = self._nvml
        memory = self._ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        power_mw = self._ask(nvml.nvmlDeviceGetPowerUsage, handle)
        use = self._ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        kinds = nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
        errors = [self._ask(nvml.nvmlDeviceGetTotalEccErrors, handle, kind, nvml.NVML_VOLATILE_ECC) for kind in kinds]
        return _known(
            name=self._ask(nvml.nvmlDeviceGetName, handle),
            use_percent=None if use is None else use.gpu,
            memory_used_mib=None if memory is None else memory.used // _MIB,
            memory_mib=None if memory is None else memory.total // _MIB,
            temperature_c=self._ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
            power_w=None if power_mw is None else power_mw / 1000,
            ecc_corrected=errors[0],
            ecc_uncorrected=errors[1],
        )

    def _ask(self, call: Callable[..., Any], *arguments: object) -> Any:
        """Return the answer; None if this GPU lacks it."""
        try:
            return call(*arguments)
        except self._nvml.NVMLError:
            return None


def read_host() -> Mapping[str, Figures]:
    """Return the use of all processors since the last call, and the memory: of the whole machine, not of a container.

    Raises:
        OSError: The system does not tell.
    """
    memory = psutil.virtual_memory()
    used = (memory.total - memory.available) // _MIB
    use = psutil.cpu_percent()
    return {HOST: {"use_percent": use, "memory_used_mib": used, "memory_mib": memory.total // _MIB}}


def _known(**figures: object) -> Figures:
    return {name: value for name, value in figures.items() if value is not None}
