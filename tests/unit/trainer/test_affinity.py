"""Each rank stays on processors next to its NPU, where npu-smi tells them; nothing that npu-smi does stops a run."""

import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from trainer.devices.runtime_env import EVENLY, runtime_environment
from trainer.environment import affinity
from trainer.environment.affinity import read_affinity
from trainer.environment.npu_smi import NpuSmiProgram
from trainer.shared.config import TrainConfig
from trainer.topology import Visible

DATA = Path(__file__).parents[2] / "data" / "environment"
A2, A3 = ((DATA / f"npu-smi-topo-{name}.txt").read_text() for name in ("24.1.rc1-a2", "a3"))
MACHINE = range(192)
NODE = "npu0:144-155,npu1:156-167,npu2:96-107,npu3:108-119,npu4:0-11,npu5:12-23,npu6:48-59,npu7:60-71"
POD = """
        NPU4  NPU5  CPU Affinity
NPU4    X     HCCS  {}
NPU5    HCCS  X     {}
"""


def _read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    *,
    visible: Visible,
    allowed: Sequence[int] = MACHINE,
    environ: Mapping[str, str] | None = None,
) -> str:
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(allowed))
    program = tmp_path / "npu-smi"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return read_affinity(visible, NpuSmiProgram(str(program)), environ or {})


@pytest.mark.parametrize(
    ("table", "ids", "allowed", "expected"),
    [
        (A2, tuple(range(8)), MACHINE, f"1,{NODE}"),
        # Two NPUs of eight: they are npu0 and npu1 for torch, and what they do not share is whole.
        (A2, (4, 5), MACHINE, "1,npu0:0-11,npu1:12-23"),
        (A2, (5, 6), MACHINE, "1,npu0:0-23,npu1:48-71"),
        (A2, (7,), MACHINE, "1,npu0:48-71"),
        # npu-smi shows only the container's own, with the node's numbers or with others.
        (POD.format("0-23", "0-23"), (4, 5), MACHINE, "1,npu0:0-11,npu1:12-23"),
        (POD.format("0-23", "24-47"), (0, 1), MACHINE, "1,npu0:0-23,npu1:24-47"),
        # The container has fewer processors.
        (A2, (4, 5), range(4, 12), "1,npu0:4-7,npu1:8-11"),
        (A2, (5, 6), (*range(8), *range(48, 52)), "1,npu0:0-7,npu1:48-51"),
        (A2, (4, 5), (0, 1, 2, 3, 8, 9, 10, 11), "1,npu0:0-3,npu1:8-11"),
        (A2, (4, 5), range(5), "1,npu0:0-1,npu1:2-3"),
        (POD.format("0-3,8-11", "0-3,8-11"), (4, 5), MACHINE, "1,npu0:0-3,npu1:8-11"),
        # Nothing near one of them, one processor for each, or processors that are no range: no setting.
        (A2, (4, 5), range(24, 48), ""),
        (A2, (5, 6), range(24), ""),
        (A2, (4, 5), range(3), ""),
        (A2, (4,), (0, 2, 4, 6), ""),
        # A layout without the processors, and tables that fit nothing.
        (A3, (0, 1), MACHINE, EVENLY),
        (A3, (12, 13), MACHINE, EVENLY),
        (A2, (8, 9), MACHINE, EVENLY),
        ("", (0,), MACHINE, EVENLY),
        ("CPU Affinity", (0,), MACHINE, EVENLY),
        ("NPU0 CPU Affinity\nNPU0 X 0-23\n", (0,), MACHINE, "1,npu0:0-23"),
        *(
            (POD.format("0-23", cell), (4, 5), MACHINE, EVENLY)
            for cell in ("NA", "", "xx-xx", "23-0", "0-", "-1", "0-23,", "0-99999", "0 - 23", "\u0661", "0x1f")
        ),
        (A2[: A2.index("NPU7   ")], tuple(range(7)), MACHINE, EVENLY),
        (A2.replace("CPU Affinity", "NUMA Affinity"), (0,), MACHINE, EVENLY),
    ],
)
def test_ranges_are_the_containers_processors_next_to_each_npu(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    table: str,
    ids: tuple[int, ...],
    allowed: Sequence[int],
    expected: str,
) -> None:
    (tmp_path / "table").write_text(table)
    script = f'[ "$*" = "info -t topo" ] && cat {tmp_path}/table'
    assert _read(tmp_path, monkeypatch, script, visible=Visible("npu", ids), allowed=allowed) == expected


@pytest.mark.parametrize(
    "script",
    # One hangs: it sleeps longer than a test may last.
    ["exit 1", f"cat {DATA}/npu-smi-topo-24.1.rc1-a2.txt; exit 1", "exec cat /dev/zero", "exec sleep 1000", "kill $$"],
)
def test_an_npu_smi_that_fails_or_hangs_leaves_the_even_division(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr(affinity, "TOPOLOGY_S", 1.0)
    assert _read(tmp_path, monkeypatch, script, visible=Visible("npu", (0,))) == EVENLY


@pytest.mark.parametrize(
    ("visible", "environ"),
    [
        (Visible("npu", (0,)), {"CPU_AFFINITY_CONF": "2"}),
        (Visible("npu", (0,)), {"CPU_AFFINITY_CONF": "0"}),
        (Visible("cuda", (0,)), {}),
        (Visible("cpu", ()), {}),
    ],
)
def test_npu_smi_is_not_asked_where_the_administrator_has_decided_or_there_is_no_npu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: Visible, environ: dict[str, str]
) -> None:
    _read(tmp_path, monkeypatch, f"cat {DATA}/npu-smi-topo-24.1.rc1-a2.txt", visible=visible, environ=environ)
    assert not (tmp_path / "asked").exists()


def test_a_machine_without_npu_smi_divides_its_processors_evenly() -> None:
    assert read_affinity(Visible("npu", (0,)), NpuSmiProgram("no-npu-smi"), {}) == EVENLY


@pytest.mark.parametrize(
    ("ranges", "given", "expected"),
    [
        (EVENLY, None, "1"),
        ("1,npu0:0-23", None, "1,npu0:0-23"),
        ("1,npu0:0-23", " ", "1,npu0:0-23"),
        ("", None, None),
        ("1,npu0:0-23", "2", None),  # its own value comes with the rest of the environment
    ],
)
def test_a_worker_gets_the_ranges_unless_the_administrator_has_decided(
    ranges: str, given: str | None, expected: str | None
) -> None:
    environ = {} if given is None else {"CPU_AFFINITY_CONF": given}
    variables = runtime_environment(
        "npu", TrainConfig(), Path("/output/run"), environ, evidence=Path("/evidence"), rank=0, affinity=ranges
    )
    assert variables.get("CPU_AFFINITY_CONF") == expected
