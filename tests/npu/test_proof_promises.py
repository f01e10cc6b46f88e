"""The checks of training's promises pass on emulated NPUs and on the CPU, and fail where a promise is broken.

PNAS_TEST_PROOFS=1 also plants the conditions that take longer.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.npu.machine import environment

Outcomes = dict[str, tuple[str, str]]
BROKEN = {
    "skipped-step": ({"NPU_EMULATED_INF_NAN": "silent:0"}, "0 of 3 steps that overflow are left out"),
    "fp32-losses": ({"NPU_EMULATED_WRONG_BIT": "0:convolution:60"}, "losses differ by "),
}
BROKEN_SLOWLY = {
    "kill-and-resume": ({"NPU_EMULATED_REDUCTIONS": "alternating:0"}, "two undisturbed runs differ: kernels of this")
}
ONE_NPU = ("--device", "npu", "--npus", "1")


def prove(output: Path, *options: str, environ: dict[str, str]) -> Outcomes:
    """Run `python -m trainer prove`, and return the verdict of each check and what it has measured."""
    words = [sys.executable, "-m", "trainer", "prove", "--output", str(output), *options]
    ended = subprocess.run(words, env={**os.environ, **environ}, capture_output=True, text=True, check=False)
    results = json.loads((output / "proof.json").read_text())["results"]
    outcomes = {result["check"]: (result["outcome"]["verdict"], result["outcome"]["measured"]) for result in results}
    assert ended.returncode == any(verdict == "failed" for verdict, _ in outcomes.values()), ended.stderr
    return outcomes


@pytest.mark.parametrize(
    ("verdicts", "apex", "variables"),
    [
        (
            dict.fromkeys(("kill-and-resume", "captured-step", "captured-fp16", "cann-log"), "passed"),
            False,
            {},
        ),
        (
            {"o2-apex": "passed", "bf16-losses": "impossible", "skipped-step": "passed"},
            True,
            {"NPU_EMULATED_INF_NAN": "0"},
        ),
    ],
)
def test_an_emulated_npu_for_one_process_at_a_time_keeps_them(
    npus: dict[str, str], tmp_path: Path, verdicts: dict[str, str], apex: bool, variables: dict[str, str]
) -> None:
    environ = {**npus, **environment(apex=apex), **variables, "NPU_EMULATED_EXCLUSIVE": str(tmp_path)}
    outcomes = prove(tmp_path, *ONE_NPU, "--only", *verdicts, environ=environ)
    assert {name: verdict for name, (verdict, _) in outcomes.items()} == {"open": "passed", **verdicts}, outcomes


@pytest.mark.parametrize("check", BROKEN | (BROKEN_SLOWLY if os.environ.get("PNAS_TEST_PROOFS") else {}))
def test_a_broken_promise_is_found(npus: dict[str, str], tmp_path: Path, check: str) -> None:
    planted, measured = (BROKEN | BROKEN_SLOWLY)[check]
    verdict, text = prove(tmp_path, *ONE_NPU, "--only", check, environ={**npus, **planted})[check]
    assert (verdict, measured in text) == ("failed", True), text


def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    outcomes = prove(tmp_path, "--device", "cpu", "--npus", "2", "--only", "data-parallel", environ={})
    assert [verdict for verdict, _ in outcomes.values()] == ["passed"] * 2
