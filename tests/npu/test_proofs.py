"""`prove` on emulated NPUs: each planted condition is named with its device, and a clean run has no finding.

PNAS_TEST_PROOFS=20 runs the whole catalogue of checks for each condition, and PNAS_TEST_CLEAN_PROOFS=50 repeats the
clean run. By default each condition runs only the check that fits, and one run is clean. PNAS_TEST_PROOFS_LOG=FILE gets
a line of JSON for each run, so that an interrupted series counts.
"""

import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.local.forked_trainer import CHECK_LIMITS, run_forked_trainer
from tests.local.test_small_machine import unshared
from tests.npu.machine import unloadable_torch_npu

WHOLE = int(os.environ.get("PNAS_TEST_PROOFS", "0"))
CLEAN = int(os.environ.get("PNAS_TEST_CLEAN_PROOFS", "1"))
BAD = ("failed", "unfinished")
DEVICE_CHECKS = ("open", "exact-arithmetic", "rounded-arithmetic", "repeatable-kernels", "overflow", "memory")
TOGETHER = ("link-speed", "all-reduce", "all-reduce-speed")
SPEED_CHECKS = ("matmul-speed", "copy-speed", *TOGETHER)
CAPTURED = ("captured-step", *(f"captured-{one}" for one in ("fp32", "fp16", "bf16", "o2", "parallel")))
RUNS = ("fp32-losses", "fp16-losses", "bf16-losses", "o2-losses", "skipped-step", *CAPTURED, "data-parallel")
PARALLEL = ("data-parallel", "captured-parallel")
RESUMED_RUNS = ("kill-and-resume", "stop-and-resume")
COMPUTING = ("rounded-arithmetic", "repeatable-kernels", "overflow", *RUNS, *RESUMED_RUNS)
WITHOUT_EMULATION = ("versions", "processors")
"""Without it, this machine has the real faults that it has no CANN and few processors for its eight device files."""
ACCUSED = re.compile(
    r"((?:npu:\d+ )+)did not arrive|(npu:\d+) (?:is slow|does not finish)|the part of (npu:\d+) is missing"
)
"""A device that a finding calls the cause."""
LIMIT_FACTOR = 3 if WHOLE else 1
TIMEOUT_S = 900


@dataclass(frozen=True)
class Condition:
    """A condition of a machine, and the findings that must name it, one at each place."""

    name: str
    environ: dict[str, str] | Callable[[Path], dict[str, str]]
    check: str
    places: tuple[str, ...]
    words: str
    """In the lines of these findings."""
    also: tuple[str, ...] = ()
    """Other checks in a whole run that can name the same devices."""
    npus: int = 2
    limits: dict[str, float] = field(default_factory=dict)
    """Shorter limits of checks that hang, in seconds."""
    prefix: Callable[[], list[str]] = list
    """Returns the beginning of the command in which the condition holds."""


def _another_pods_table(folder: Path) -> dict[str, str]:
    """Write a rank table in which this pod is not, and return the variables of the pod."""
    device = [{"device_id": str(n), "device_ip": f"192.168.1.{n}", "rank_id": str(n)} for n in range(2)]
    server = {"server_id": "2a7c9a34-0000-4000-8000-000000000001", "device": device}
    table = {"version": "1.0", "status": "completed", "server_count": "1", "server_list": [server]}
    (folder / "hccl.json").write_text(json.dumps(table))
    return {"RANK_TABLE_FILE": str(folder / "hccl.json"), "POD_UID": "2a7c9a34-0000-4000-8000-000000000002"}


CONDITIONS = (
    Condition(
        "a slow device", {"NPU_EMULATED_SLOW": "1:4"}, "matmul-speed", ("npu:1",), "npu:1 is slow", also=("copy-speed",)
    ),
    Condition(
        "a device that is slow when it is warm",
        {"NPU_EMULATED_THROTTLE": "1:0.5:4"},
        "matmul-speed",
        ("npu:1",),
        "npu:1 is slow",
    ),
    Condition(
        "one wrong bit in one result of a kernel in 40",
        {"NPU_EMULATED_WRONG_BIT": "1:mm:40"},
        "exact-arithmetic",
        ("npu:1",),
        "matrix product in ",
        also=COMPUTING,
    ),
    Condition(
        "one wrong bit in a convolution",
        {"NPU_EMULATED_WRONG_BIT": "0:convolution:60"},
        "exact-arithmetic",
        ("npu:0",),
        "1 of ",
        also=COMPUTING,
    ),
    Condition(
        "one wrong bit in a backward pass",
        {"NPU_EMULATED_WRONG_BIT": "1:convolution_backward:97"},
        "exact-arithmetic",
        ("npu:1",),
        "gradient to the ",
        also=COMPUTING,
    ),
    Condition(
        "a wrong sum in fp16",
        {"NPU_EMULATED_SHORT_SUM": "1"},
        "exact-arithmetic",
        ("npu:1",),
        "sum in fp16, call 1: ",
        also=COMPUTING,
    ),
    Condition(
        "memory that forgets",
        {"NPU_EMULATED_FORGETS": "1:150"},
        "memory",
        ("npu:1",),
        "1 wrong words; in word ",
        also=("exact-arithmetic", *COMPUTING, "cann-log"),
    ),
    Condition(
        "kernels that are not deterministic",
        {"NPU_EMULATED_REDUCTIONS": "alternating:0"},
        "repeatable-kernels",
        ("npu:0",),
        "pass 2 in fp32: ",
        also=(*CAPTURED, *RESUMED_RUNS),
    ),
    Condition(
        "arithmetic that saturates silently",
        {"NPU_EMULATED_INF_NAN": "silent:1"},
        "overflow",
        ("npu:1",),
        "fp16 stops at 65,504; 0 of 12 steps",
        also=("skipped-step",),
    ),
    Condition(
        "a hang at the 5th collective",
        {"NPU_EMULATED_HANG": "1:5"},
        "all-reduce",
        ("npu:0 npu:1",),
        "npu:1 did not arrive: ",
        also=(*TOGETHER, *PARALLEL),
        limits={**dict.fromkeys(TOGETHER, 10.0), **dict.fromkeys(PARALLEL, 30.0)},
    ),
    Condition(
        "a hang in a timed collective",
        {"NPU_EMULATED_HANG": "1:5"},
        "all-reduce-speed",
        ("npu:0 npu:1",),
        "npu:1 did not arrive: ",
        also=(*TOGETHER, *PARALLEL),
        limits={**dict.fromkeys(TOGETHER, 10.0), **dict.fromkeys(PARALLEL, 30.0)},
    ),
    Condition(
        "a device that fails at the 5th collective",
        {"NPU_EMULATED_FAIL": "0:5"},
        "all-reduce",
        ("npu:0 npu:1",),
        "npu:0: RuntimeError: HcclAllReduce:",
        also=(*TOGETHER, *PARALLEL),
    ),
    Condition(
        "a part that is lost in the 9th collective",
        {"NPU_EMULATED_LOST_PART": "1:9"},
        "all-reduce",
        ("npu:0 npu:1",),
        "the part of npu:1 is missing: ",
        also=PARALLEL,
    ),
    Condition(
        "a slow link",
        {"NPU_EMULATED_SLOW_LINK": "1-2:40000"},
        "link-speed",
        ("npu:1 npu:2",),
        "the link between npu:1 and npu:2 is slow",
        npus=4,
    ),
    Condition(
        "the only link is slow",
        {"NPU_EMULATED_SLOW_LINK": "0-1:40000"},
        "link-speed",
        ("npu:0 npu:1",),
        "the link between npu:0 and npu:1 is slow",
    ),
    Condition("a device that does not open", {"NPU_EMULATED_OPEN": "1:fail"}, "open", ("npu:1",), "507033"),
    Condition(
        "a device that hangs when it is opened",
        {"NPU_EMULATED_OPEN": "0:hang"},
        "open",
        ("npu:0",),
        "no answer within ",
        limits={"open": 8.0},
    ),
    Condition("little memory", {"NPU_EMULATED_HBM_MIB": "1:256"}, "open", ("npu:1",), "with 256 MiB of memory"),
    Condition(
        "a device of another model",
        {"NPU_EMULATED_NAME": "2:Ascend910-of-last-year"},
        "open",
        ("npu:2",),
        "Ascend910-of-last-year with ",
        npus=3,
    ),
    Condition(
        "a missing driver",
        unloadable_torch_npu,
        "open",
        ("npu:0", "npu:1"),
        "the NPU's driver is not in this container (libascend_hal.so: ",
        also=WITHOUT_EMULATION,
    ),
    Condition(
        "versions that do not fit",
        lambda folder: unloadable_torch_npu(folder, "2.1.0"),
        "versions",
        ("node",),
        "torch_npu 2.1.0 is for torch 2.1.0",
        also=("open", *WITHOUT_EMULATION),
    ),
    Condition(
        "a small /dev/shm",
        {},
        "shared-memory",
        ("node",),
        "/dev/shm",
        prefix=lambda: unshared("--mount", setup="mount -t tmpfs -o size=64m tmpfs /dev/shm"),
    ),
    Condition(
        "few open files",
        {},
        "open-files",
        ("node",),
        "256 files can be open at once",
        prefix=lambda: ["sh", "-c", 'ulimit -n 256; exec "$@"', "sh"],
    ),
    Condition(
        "the rank table of another pod",
        _another_pods_table,
        "rank-table",
        ("node",),
        "the table does not contain this pod",
        limits={"rank-table": 3.0},
    ),
    Condition(
        "captured steps that miss replays",
        {"NPU_EMULATED_STALE_REPLAY": "1:3"},
        "captured-step",
        ("npu:1",),
        "not the eager run's bits: its losses differ from step ",
        also=CAPTURED,
    ),
    Condition(
        "no log of CANN's in a file",
        {"ASCEND_SLOG_PRINT_TO_STDOUT": "1"},
        "cann-log",
        ("npu:0", "npu:1"),
        "no file of CANN's log in the run's folder",
    ),
    Condition(
        "a trainer that SIGTERM does not reach",
        {},
        "stop-and-resume",
        ("npu:0", "npu:1"),
        "the run stopped, which must end with 75, ended with exit code 0",
        prefix=lambda: ["env", "--block-signal=TERM"],
    ),
)


def _run(npus: dict[str, str], folder: Path, condition: Condition, *only: str) -> "subprocess.CompletedProcess[str]":
    """Run `prove` on a machine with the condition, forked where possible."""
    planted = condition.environ if isinstance(condition.environ, dict) else condition.environ(folder)
    limits = " ".join(f"{name}={limit_s * LIMIT_FACTOR}" for name, limit_s in condition.limits.items())
    machine = {"NPU_EMULATED_DEVICES": str(condition.npus), "NPU_EMULATED_CLOCK": "work"}
    environ = {**os.environ, **npus, **machine, CHECK_LIMITS: limits, **planted}
    options = ("prove", "--device", "npu", "--npus", str(condition.npus), "--output", str(folder), "--json")
    words = (*options, *(("--only", *only) if only else ()))
    if not (prefix := condition.prefix()):
        return run_forked_trainer(words, environ=environ, file_limit=resource.RLIM_INFINITY, timeout_s=TIMEOUT_S)
    command = (*prefix, sys.executable, "-m", "trainer", *words)
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


@dataclass(frozen=True)
class Finding:
    """A check that has failed or did not finish."""

    check: str
    place: str
    measured: str

    @property
    def accused(self) -> set[str]:
        """The devices that it calls the cause."""
        return {device for groups in ACCUSED.findall(self.measured) for group in groups for device in group.split()}


def _prove(
    npus: dict[str, str], folder: Path, condition: Condition, *only: str
) -> tuple[list[Finding], list[dict[str, Any]]]:
    """Return the findings and all results of a run of `prove`, which must end with 1 if there are findings."""
    begin = time.monotonic()
    done = _run(npus, folder, condition, *only)
    assert "Traceback" not in done.stdout + done.stderr
    results: list[dict[str, Any]] = json.loads((folder / "proof.json").read_text())["results"]
    findings = [
        Finding(result["check"], result["place"], result["outcome"]["measured"])
        for result in results
        if result["outcome"]["verdict"] in BAD
    ]
    if log := os.environ.get("PNAS_TEST_PROOFS_LOG"):
        told = {"condition": condition.name, "checks": only or "all", "findings": list(map(asdict, findings))}
        measured = {
            "ended": time.strftime("%H:%M:%S"),
            "seconds": round(time.monotonic() - begin),
            "load": os.getloadavg(),
        }
        with Path(log).open("a", encoding="utf-8") as file:
            file.write(json.dumps(told | measured) + "\n")
    assert done.returncode == bool(findings), done.stderr
    return findings, results


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda condition: condition.name)
def test_a_planted_condition_is_named_with_its_devices(
    condition: Condition, npus: dict[str, str], tmp_path: Path
) -> None:
    findings, _ = _prove(npus, tmp_path, condition, *(() if WHOLE else (condition.check,)))
    named = [one for one in findings if one.check == condition.check and condition.words in one.measured]
    assert {one.place for one in named} == set(condition.places), findings
    devices = set(" ".join(condition.places).split())
    causes = Finding("", "", condition.words).accused or devices
    for other in findings:
        assert other.check in (condition.check, *condition.also), findings
        assert "node" in (other.place, *devices) or devices & set(other.place.split()), findings
        assert other.accused <= causes, findings


def test_swapped_visible_devices_are_refused(npus: dict[str, str], tmp_path: Path) -> None:
    swapped = Condition("visible devices swapped", {"ASCEND_RT_VISIBLE_DEVICES": "1,0"}, "", (), "")
    done = _run(npus, tmp_path, swapped)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: ASCEND_RT_VISIBLE_DEVICES=1,0: torch_npu sees no NPU unless the numbers ascend"
    )


def test_a_chip_that_raises_a_flag_passes_and_is_told(npus: dict[str, str], tmp_path: Path) -> None:
    saturating = Condition("an Ascend 910A", {"NPU_EMULATED_INF_NAN": "0"}, "overflow", (), "")
    findings, results = _prove(npus, tmp_path, saturating, "overflow")
    assert findings == []
    told = [result["outcome"]["measured"] for result in results if result["check"] == "overflow"]
    assert told == ["fp16 stops at 65,504; 9 of 12 steps with a scale of 2^16 and more were left out"] * 2


CLEAN_MACHINE = Condition("none", {}, "", (), "")


@pytest.mark.parametrize("number", range(CLEAN))
def test_a_clean_run_has_no_finding(number: int, npus: dict[str, str], tmp_path: Path) -> None:
    findings, _ = _prove(npus, tmp_path, CLEAN_MACHINE, *(() if WHOLE else (*DEVICE_CHECKS, *SPEED_CHECKS)))
    assert findings == [], f"run {number + 1}"
