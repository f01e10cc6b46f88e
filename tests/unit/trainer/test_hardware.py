"""Samples of the hardware: every layout of npu-smi, and none of its ways to fail, reaches training."""

import json
import os
import select
import signal
import stat
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from trainer.environment import hardware
from trainer.environment.hardware import CudaReader, NpuReader, read_host
from trainer.environment.npu_smi import NpuSmiProgram
from trainer.environment.parsing import parse_ecc
from trainer.environment.sampler import HardwareSampler, node_sampler, waits
from trainer.records.attempts import reached_step
from trainer.records.hardware import LatestSamples, writing_samples
from trainer.records.run_records import Records, SavedExtent
from trainer.shared.config import TrainConfig
from trainer.topology import Topology, Visible, Worker

DATA = Path(__file__).parents[2] / "data" / "environment"
TABLE = "npu-smi-24.1.rc3-a2.txt"
HANG = "sleep 1000"
"""It must be killed: it lasts longer than a test may."""

Script = Callable[[str], NpuSmiProgram]


@pytest.fixture
def npu_smi(tmp_path: Path) -> Script:
    """Return a function that makes a shell script the npu-smi of this test, which has a moment to answer."""

    def make(script: str, timeout_s: float = 20.0) -> NpuSmiProgram:
        path = tmp_path / "npu-smi"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return NpuSmiProgram(str(path), timeout_s=timeout_s)

    return make


def _answers(table: str, ecc: str = "/dev/null") -> str:
    return f'case "$*" in info) cat {DATA / table};; "info -t ecc -i "*) cat {DATA / ecc};; *) exit 9;; esac'


@pytest.mark.parametrize(
    ("table", "ids", "ecc", "figures"),
    [
        (
            TABLE,
            (0, 1),
            "npu-smi-ecc-26.0.txt",
            {
                "npu:0": ("910B1", "OK", 0.0, 3373, 65536, 49.0, 94.6, 5, 0),
                "npu:1": ("910B1", "Warning", 12.0, 52675, 65536, 47.0, 90.1, None, None),
            },
        ),
        (  # the second of two NPUs is this container's; DDR is not what a run fills
            "npu-smi-24.1.0-910a.txt",
            (3,),
            "npu-smi-ecc-23.0.5.txt",
            {"npu:0": ("910B", "Alarm", 0.0, 4, 32768, 34.0, 66.9, 17, 1)},
        ),
        (  # the container has other numbers
            "npu-smi-24.1.0-910a.txt",
            (0, 1),
            "/dev/null",
            {
                "npu:0": ("910B", "OK", 93.0, 28113, 32768, 71.0, 251.4, None, None),
                "npu:1": ("910B", "Alarm", 0.0, 4, 32768, 34.0, 66.9, None, None),
            },
        ),
        (  # two chips a card: the files have the numbers of its column Phy-ID
            "npu-smi-25.2.0-a3.txt",
            (0, 1),
            "npu-smi-ecc-23.0.5.txt",
            {
                "npu:0": ("Ascend910", "OK", 7.0, 61609, 65536, 43.0, 211.3, 17, 1),
                "npu:1": ("Ascend910", "OK", 0.0, 3412, 65536, 44.0, None, 3, 0),
            },
        ),
        (  # its power is NA
            "npu-smi-25.3.rc1-310p.txt",
            (0,),
            "/dev/null",
            {"npu:0": ("310P3", "OK", 0.0, 1839, 21525, 50.0, None, None, None)},
        ),
    ],
)
def test_each_recorded_layout_gives_the_figures_of_the_jobs_npus(
    npu_smi: Script, table: str, ids: Sequence[int], ecc: str, figures: Mapping[str, Sequence[object]]
) -> None:
    names = (
        *("name", "health", "use_percent", "memory_used_mib", "memory_mib", "temperature_c", "power_w"),
        *("ecc_corrected", "ecc_uncorrected"),
    )
    known = {
        device: {name: value for name, value in zip(names, values, strict=True) if value is not None}
        for device, values in figures.items()
    }
    assert NpuReader(npu_smi(_answers(table, ecc)), ids)() == known


def test_each_call_asks_one_card_for_the_errors_of_its_memory(npu_smi: Script, tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    reader = NpuReader(npu_smi(f'echo "$*" >> {asked}; {_answers(TABLE)}'), (0, 1))
    for _ in range(3):
        reader()
    assert asked.read_text().splitlines() == [word for card in (0, 1, 0) for word in ("info", f"info -t ecc -i {card}")]


def test_the_errors_of_each_chip_are_read_and_a_text_without_counts_is_empty() -> None:
    assert parse_ecc((DATA / "npu-smi-ecc-23.0.5.txt").read_text()) == {
        0: {"single": 17, "double": 1},
        1: {"single": 3, "double": 0},
    }
    assert parse_ecc((DATA / "npu-smi-ecc-26.0.txt").read_text()) == {0: {"single": 5, "double": 0}}
    assert parse_ecc("This device does not support querying ecc.\nChip ID : 0") == {}


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        (HANG, "no answer within"),
        (f"{HANG} & wait", "no answer within"),
        (f"cat {DATA / TABLE}; {HANG}", "no answer within"),
        (f"cat {DATA / TABLE}; exec >&- 2>&-; {HANG}", "no answer within"),
        ("while :; do echo '|'; sleep 0.01; done", "no answer within"),
        ("exec yes", "more than 1048576 bytes"),
        ("echo 'dcmi module initialize failed. ret is -8005'; exit 1", "ret is -8005"),
        ("kill -9 $$", "exit code -9"),
        ("head -c 100000 /dev/urandom", "names no NPU 0, 1"),
        ("echo", "names no NPU 0, 1"),
        (f"sed 's/|/!/g' {DATA / TABLE}", "names no NPU 0, 1"),
        (f"head -c 700 {DATA / TABLE}", "names no NPU 0, 1"),
        (f"cat {DATA / 'npu-smi-22.0.0-310p.txt'}", "names no NPU 0, 1"),
        (f"tr 0-9 a-j < {DATA / TABLE}", "names no NPU 0, 1"),
    ],
)
def test_an_npu_smi_that_fails_in_any_way_gives_one_reason_and_no_figures(
    npu_smi: Callable[..., NpuSmiProgram], script: str, problem: str
) -> None:
    timeout_s = 0.3 if "no answer" in problem else 20.0
    before = psutil.Process().children()
    with pytest.raises(OSError, match=problem):
        NpuReader(npu_smi(script, timeout_s), (0, 1))()
    assert psutil.Process().children() == before, "no process of it is left"


def test_a_program_that_cannot_be_killed_is_neither_awaited_nor_started_twice(
    npu_smi: Callable[..., NpuSmiProgram], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = tmp_path / "pids"
    program = npu_smi(f"echo $$ >> {pids}; exec {HANG}", 0.3)
    killed: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda pid, _number: killed.append(pid))
    with pytest.raises(TimeoutError, match="no answer within"):
        program.ask("info")
    with pytest.raises(TimeoutError, match="it hangs"):
        program.ask("info")
    monkeypatch.undo()
    (pid,) = map(int, pids.read_text().split())
    assert killed == [pid]
    os.killpg(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(TimeoutError, match="no answer within"):
        program.ask("info")
    assert len(pids.read_text().split()) == 2, "it is asked again after its end"


def _wait(sampler: HardwareSampler) -> tuple[Sequence[Mapping[str, Any]], Sequence[str]]:
    assert select.select([sampler.fd], [], [], 60)[0], "a sample comes"
    return sampler.take()


def test_a_sample_names_its_time_node_device_and_rank_and_the_latest_keeps_rare_figures() -> None:
    readings = iter([{"npu:0": {"use_percent": 7.0, "ecc_corrected": 1}, "npu:1": {}}, {"npu:0": {"use_percent": 8.0}}])
    may_read = threading.Semaphore(0)

    def reader() -> Mapping[str, Mapping[str, Any]]:
        may_read.acquire()
        return next(readings, {})

    sampler = HardwareSampler(
        {"npu-smi": reader, "the host": read_host}, node=1, ranks={"npu:0": 8}, interval_s=0.0, clock=lambda: 0.0
    )
    with sampler:
        may_read.release(2)
        samples: list[Mapping[str, Any]] = []
        while sum(sample["device"] == "npu:0" for sample in samples) < 2:
            samples += _wait(sampler)[0]
        place = {"time": "1970-01-01T00:00:00Z", "node": 1, "device": "npu:0", "rank": 8}
        own = [sample for sample in samples if sample["device"] == "npu:0"]
        assert own == [{**place, "use_percent": 7.0, "ecc_corrected": 1}, {**place, "use_percent": 8.0}]
        assert {sample["device"] for sample in samples} == {"npu:0", "cpu"}, "npu:1 is of another job"
        latest = {sample["device"]: sample for sample in sampler.latest}
        assert latest["npu:0"] == {**place, "use_percent": 8.0, "ecc_corrected": 1}
        assert latest["cpu"]["memory_mib"] > latest["cpu"]["memory_used_mib"] > 0
        may_read.release(100)


def test_samples_come_soon_after_the_start_and_then_at_the_interval() -> None:
    assert list(islice(waits(30.0), 6)) == [2, 4, 8, 16, 30, 30]
    assert list(islice(waits(0.0), 3)) == [0, 0, 0]


def test_each_reason_for_missing_figures_is_told_once() -> None:
    errors = iter(["no answer within 20 s", "no answer within 20 s", "\x1b[2J"])
    told: list[str] = []
    may_read, ended = threading.Semaphore(0), threading.Event()

    def reader() -> Mapping[str, Mapping[str, Any]]:
        if (error := next(errors, None)) is None:
            ended.set()
            may_read.acquire()
            return {}
        raise OSError(error)

    with HardwareSampler({"npu-smi": reader}, ranks={}, interval_s=0.0) as sampler:
        assert ended.wait(60)
        told += sampler.take()[1]
        may_read.release()
    assert told == [
        "hardware: npu-smi: no answer within 20 s: its figures are left out",
        r"hardware: npu-smi: \x1b[2J: its figures are left out",
    ]


def test_the_end_waits_for_no_reader_that_hangs() -> None:
    hanging, goes_on = threading.Event(), threading.Event()

    def reader() -> Mapping[str, Mapping[str, Any]]:
        hanging.set()
        goes_on.wait()
        return {"cpu": {"use_percent": 1.0}}

    with HardwareSampler({"npu-smi": reader}, ranks={}, interval_s=0.0):
        assert hanging.wait(60)
    goes_on.set()


@pytest.mark.parametrize(
    ("kind", "told"),
    [("npu", ["hardware: npu-smi: No such file or directory"]), ("cpu", [])],
)
def test_a_node_without_npu_smi_says_so_once_and_samples_its_host(
    kind: Any, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.environment.sampler.INTERVAL_S", 0.0)
    topology = Topology(2, 1, 0, (Worker(0, 0, 4), Worker(1, 1, 5)), "127.0.0.1", 1, None, "options")
    with node_sampler(topology, Visible(kind, (4, 5)), NpuSmiProgram("no-npu-smi")) as sampler:
        samples: list[Mapping[str, Any]] = []
        notes: list[str] = []
        while len(samples) < 2 or len(notes) < len(told):
            more, new = _wait(sampler)
            samples += more
            notes += new
    assert [note.removesuffix(": its figures are left out") for note in notes] == told
    assert {sample["device"] for sample in samples} == {"cpu"}


class _NvmlError(Exception):
    pass


def _nvml(**functions: Any) -> SimpleNamespace:
    """Return the part of NVML that is read, of a machine with the GPUs 0 and 1, whose files are 1 and 0."""
    fails = {"nvmlDeviceGetPowerUsage": _unsupported}
    constants = {
        "NVML_MEMORY_ERROR_TYPE_CORRECTED": 0,
        "NVML_MEMORY_ERROR_TYPE_UNCORRECTED": 1,
        "NVML_VOLATILE_ECC": 0,
        "NVML_TEMPERATURE_GPU": 0,
    }
    answers: dict[str, Any] = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetMinorNumber": lambda handle: 1 - handle,
        "nvmlDeviceGetName": lambda handle: f"GPU {handle}",
        "nvmlDeviceGetMemoryInfo": lambda _handle: SimpleNamespace(used=3 << 20, total=5 << 20),
        "nvmlDeviceGetUtilizationRates": lambda _handle: SimpleNamespace(gpu=88),
        "nvmlDeviceGetTemperature": lambda _handle, _sensor: 61,
        "nvmlDeviceGetTotalEccErrors": lambda _handle, kind, _counter: 4 + kind,
    }
    return SimpleNamespace(NVMLError=_NvmlError, **{**constants, **answers, **fails, **functions})


def _unsupported(*_arguments: object) -> Any:
    raise _NvmlError("Not Supported")


def test_gpus_are_read_by_the_numbers_of_their_files_and_figures_that_one_lacks_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", _nvml())
    expected = {"use_percent": 88, "memory_used_mib": 3, "memory_mib": 5, "temperature_c": 61}
    expected |= {"ecc_corrected": 4, "ecc_uncorrected": 5}
    assert CudaReader((1,))() == {"cuda:0": {"name": "GPU 0", **expected}}
    monkeypatch.setitem(sys.modules, "pynvml", _nvml(nvmlInit=_unsupported))
    with pytest.raises(OSError, match="Not Supported"):
        CudaReader((1,))()


def test_the_names_that_are_read_of_nvml_exist() -> None:
    import pynvml

    assert [name for name in vars(_nvml()) if not hasattr(pynvml, name)] == []
    assert hardware.CudaReader((0,)) is not None


def test_rows_of_the_hardware_are_written_as_they_come_and_stay_over_a_rewind(tmp_path: Path) -> None:
    step = {"epoch": 0, "step": 0, "global_step": 0, "loss": 4.0, "lr": 0.5}
    sample = {"time": "t", "node": 0, "device": "npu:0", "rank": 0, "use_percent": 93.0}
    samples: SimpleQueue[bytes | None] = SimpleQueue()
    with Records(tmp_path, TrainConfig(), rank=0, world_size=1) as records:
        with writing_samples(records, samples) as latest:
            samples.put(json.dumps(sample).encode())
        assert latest.fields() == {"use_percent": "93"}
        records.write_steps([step])
        records.rewind(SavedExtent(steps=0, epochs=0))
        with pytest.raises(ZeroDivisionError), writing_samples(records, samples):
            samples.put(json.dumps(sample).encode() * int(1 / 0))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"kind": "hardware", **sample}]


def test_a_line_has_the_latest_figures_of_all_ranks_and_hosts_in_their_order() -> None:
    latest = LatestSamples()
    assert latest.fields() == {}
    latest.add({"node": 0, "device": "npu:0", "rank": 0, "use_percent": 1.0, "power_w": 94.6})
    latest.add({"node": 1, "device": "npu:0", "rank": 2, "use_percent": 92.5, "memory_mib": 0, "memory_used_mib": 0})
    latest.add({"node": 0, "device": "npu:0", "rank": 0, "use_percent": 7.0, "memory_used_mib": 3, "memory_mib": 4})
    latest.add({"node": 1, "device": "cpu", "use_percent": 12.4, "memory_used_mib": 3, "memory_mib": 4})
    assert latest.fields() == {"use_percent": "7 - 92", "memory_percent": "75 - -", "host_use_percent": "- 12"}


def test_many_rows_of_the_hardware_hide_no_step(tmp_path: Path) -> None:
    with Records(tmp_path, TrainConfig(), rank=0, world_size=1) as records:
        records.write_steps([{"epoch": 0, "step": 6, "global_step": 6, "loss": 4.0, "lr": 0.5}])
        records.write_hardware([{"device": f"npu:{number % 64}", "use_percent": 0.0} for number in range(4000)])
    assert (tmp_path / "metrics.jsonl").stat().st_size > 3 << 16
    assert reached_step(tmp_path) == 7
