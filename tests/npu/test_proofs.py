"""`prove` on emulated NPUs: each planted condition is named with its device, and a clean run has no finding.

PNAS_TEST_PROOFS=20 runs the whole catalogue of checks for each condition, and PNAS_TEST_CLEAN_PROOFS=50 repeats the
clean run. By default each condition runs only the checks that fit, and one run is clean.
"""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.local.forked_trainer import CHECK_LIMIT_S, run_forked_trainer
from tests.local.test_small_machine import unshared
from tests.npu.machine import unloadable_torch_npu

WHOLE = int(os.environ.get("PNAS_TEST_PROOFS", "0"))
CLEAN = int(os.environ.get("PNAS_TEST_CLEAN_PROOFS", "1"))
BAD = ("failed", "unfinished")
DEVICE_CHECKS = ("open", "exact-arithmetic", "rounded-arithmetic", "repeatable-kernels", "overflow", "memory")
SPEED_CHECKS = ("matmul-speed", "copy-speed", "link-speed", "all-reduce", "all-reduce-speed")


@dataclass(frozen=True)
class Condition:
    """A condition of a machine, and the finding that must name it."""

    name: str
    environ: dict[str, str] | Callable[[Path], dict[str, str]]
    check: str
    place: str
    words: str
    """In the line of the finding."""
    npus: int = 2
    limit_s: float = 120.0
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
    Condition("a slow device", {"NPU_EMULATED_SLOW": "1:4"}, "matmul-speed", "npu:1", "npu:1 is slow"),
    Condition(
        "a device that is slow when it is warm",
        {"NPU_EMULATED_THROTTLE": "1:0.5:4"},
        "matmul-speed",
        "npu:1",
        "npu:1 is slow",
    ),
    Condition(
        "one wrong bit in one result of a kernel in 40",
        {"NPU_EMULATED_WRONG_BIT": "1:mm:40"},
        "exact-arithmetic",
        "npu:1",
        "matrix product in ",
    ),
    Condition(
        "one wrong bit in a convolution",
        {"NPU_EMULATED_WRONG_BIT": "0:convolution:60"},
        "exact-arithmetic",
        "npu:0",
        "1 of ",
    ),
    Condition(
        "one wrong bit in a backward pass",
        {"NPU_EMULATED_WRONG_BIT": "1:convolution_backward:97"},
        "exact-arithmetic",
        "npu:1",
        "gradient to the ",
    ),
    Condition(
        "a wrong sum in fp16", {"NPU_EMULATED_SHORT_SUM": "1"}, "exact-arithmetic", "npu:1", "sum in fp16, call 1: "
    ),
    Condition("memory that forgets", {"NPU_EMULATED_FORGETS": "1:150"}, "memory", "npu:1", "1 wrong words; in word "),
    Condition(
        "kernels that are not deterministic",
        {"NPU_EMULATED_REDUCTIONS": "alternating:0"},
        "repeatable-kernels",
        "npu:0",
        "pass 2 in fp32: ",
    ),
    Condition(
        "arithmetic that saturates silently",
        {"NPU_EMULATED_INF_NAN": "silent:1"},
        "overflow",
        "npu:1",
        "fp16 stops at 65,504; 0 of 12 steps",
    ),
    Condition(
        "a hang at the 5th collective",
        {"NPU_EMULATED_HANG": "1:5"},
        "all-reduce",
        "npu:0 npu:1",
        "npu:1 did not arrive: ",
        limit_s=10.0,
    ),
    Condition(
        "a device that fails at the 5th collective",
        {"NPU_EMULATED_FAIL": "0:5"},
        "all-reduce",
        "npu:0 npu:1",
        "npu:0: RuntimeError: HcclAllReduce:",
    ),
    Condition(
        "a part that is lost in the 9th collective",
        {"NPU_EMULATED_LOST_PART": "1:9"},
        "all-reduce",
        "npu:0 npu:1",
        "the part of npu:1 is missing: ",
    ),
    Condition(
        "a slow link",
        {"NPU_EMULATED_SLOW_LINK": "1-2:40000"},
        "link-speed",
        "npu:1 npu:2",
        "the link between npu:1 and npu:2 is slow",
        npus=4,
    ),
    Condition(
        "the only link is slow",
        {"NPU_EMULATED_SLOW_LINK": "0-1:40000"},
        "link-speed",
        "npu:0 npu:1",
        "the link between npu:0 and npu:1 is slow",
    ),
    Condition("a device that does not open", {"NPU_EMULATED_OPEN": "1:fail"}, "open", "npu:1", "507033"),
    Condition(
        "a device that hangs when it is opened",
        {"NPU_EMULATED_OPEN": "0:hang"},
        "open",
        "npu:0",
        "no answer within ",
        limit_s=8.0,
    ),
    Condition("little memory", {"NPU_EMULATED_HBM_MIB": "1:256"}, "open", "npu:1", "with 256 MiB of memory"),
    Condition(
        "a device of another model",
        {"NPU_EMULATED_NAME": "2:Ascend910-of-last-year"},
        "open",
        "npu:2",
        "Ascend910-of-last-year with ",
        npus=3,
    ),
    Condition(
        "a missing driver",
        unloadable_torch_npu,
        "open",
        "npu:0",
        "the NPU's driver is not in this container (libascend_hal.so: ",
    ),
    Condition(
        "versions that do not fit",
        lambda folder: unloadable_torch_npu(folder, "2.1.0"),
        "versions",
        "node",
        "torch_npu 2.1.0 is for torch 2.1.0",
    ),
    Condition(
        "a small /dev/shm",
        {},
        "shared-memory",
        "node",
        "/dev/shm",
        prefix=lambda: unshared("--mount", setup="mount -t tmpfs -o size=64m tmpfs /dev/shm"),
    ),
    Condition(
        "few open files",
        {},
        "open-files",
        "node",
        "256 files can be open at once",
        prefix=lambda: ["sh", "-c", 'ulimit -n 256; exec "$@"', "sh"],
    ),
    Condition(
        "the rank table of another pod",
        _another_pods_table,
        "rank-table",
        "node",
        "the table does not contain this pod",
        limit_s=3.0,
    ),
)


def _run(npus: dict[str, str], folder: Path, condition: Condition, *only: str) -> "subprocess.CompletedProcess[str]":
    """Run `prove` on a machine with the condition, forked where possible."""
    planted = condition.environ if isinstance(condition.environ, dict) else condition.environ(folder)
    # A short limit makes one check hang for a short time, and others would not end within it.
    limit_s = max(condition.limit_s, 120.0) if WHOLE else condition.limit_s
    machine = {"NPU_EMULATED_DEVICES": str(condition.npus), "NPU_EMULATED_CLOCK": "work"}
    environ = {**os.environ, **npus, **machine, CHECK_LIMIT_S: str(limit_s), **planted}
    options = ("prove", "--device", "npu", "--npus", str(condition.npus), "--output", str(folder), "--json")
    words = (*options, *(("--only", *only) if only else ()))
    if not (prefix := condition.prefix()):
        return run_forked_trainer(words, environ=environ, file_limit=resource.RLIM_INFINITY, timeout_s=900)
    command = (*prefix, sys.executable, "-m", "trainer", *words)
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


def _prove(npus: dict[str, str], folder: Path, condition: Condition, *only: str) -> list[dict[str, Any]]:
    """Return the results of a run of `prove`, which must end with 1 if there are findings."""
    done = _run(npus, folder, condition, *only)
    assert "Traceback" not in done.stdout + done.stderr
    results: list[dict[str, Any]] = json.loads((folder / "proof.json").read_text())["results"]
    assert done.returncode == any(result["outcome"]["verdict"] in BAD for result in results), done.stderr
    return results


def _findings(results: list[dict[str, Any]]) -> list[str]:
    return [
        f"{result['check']} {result['place']}: {result['outcome']['measured']}"
        for result in results
        if result["outcome"]["verdict"] in BAD
    ]


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda condition: condition.name)
def test_a_planted_condition_is_named_with_its_device(
    condition: Condition, npus: dict[str, str], tmp_path: Path
) -> None:
    only = () if WHOLE else (condition.check,)
    findings = _findings(_prove(npus, tmp_path, condition, *only))
    begin = f"{condition.check} {condition.place}: "
    assert any(finding.startswith(begin) and condition.words in finding for finding in findings), findings
    if not WHOLE:
        assert all(finding.startswith(f"{condition.check} ") for finding in findings), findings


def test_swapped_visible_devices_are_refused(npus: dict[str, str], tmp_path: Path) -> None:
    swapped = Condition("visible devices swapped", {"ASCEND_RT_VISIBLE_DEVICES": "1,0"}, "", "", "")
    done = _run(npus, tmp_path, swapped)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: ASCEND_RT_VISIBLE_DEVICES=1,0: torch_npu sees no NPU unless the numbers ascend"
    )


def test_a_chip_that_raises_a_flag_passes_and_is_told(npus: dict[str, str], tmp_path: Path) -> None:
    saturating = Condition("an Ascend 910A", {"NPU_EMULATED_INF_NAN": "0"}, "overflow", "npu:0", "")
    results = _prove(npus, tmp_path, saturating, "overflow")
    assert _findings(results) == []
    told = [result["outcome"]["measured"] for result in results if result["check"] == "overflow"]
    assert told == ["fp16 stops at 65,504; 9 of 12 steps with a scale of 2^16 and more were left out"] * 2


CLEAN_MACHINE = Condition("none", {}, "", "", "", limit_s=600.0)


@pytest.mark.parametrize("number", range(CLEAN))
def test_a_clean_run_has_no_finding(number: int, npus: dict[str, str], tmp_path: Path) -> None:
    only = () if WHOLE else (*DEVICE_CHECKS, *SPEED_CHECKS)
    assert _findings(_prove(npus, tmp_path, CLEAN_MACHINE, *only)) == [], f"run {number + 1}"
