"""The checks of training's promises pass on emulated NPUs and on the CPU, with the trainer itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.npu.machine import environment

Verdicts = dict[str, str]


def prove(output: Path, *options: str, environ: dict[str, str]) -> Verdicts:
    """Run `python -m trainer prove`, and return the verdict of each check."""
    words = [sys.executable, "-m", "trainer", "prove", "--output", str(output), *options]
    ended = subprocess.run(words, env={**os.environ, **environ}, capture_output=True, text=True, check=False)
    results = json.loads((output / "proof.json").read_text())["results"]
    assert ended.returncode == 0, (ended.stdout, ended.stderr)
    return {result["check"]: result["outcome"]["verdict"] for result in results}


@pytest.mark.parametrize(
    ("checks", "apex", "variables"),
    [
        (("kill-and-resume", "captured-step", "cann-log"), False, {}),
        (("o2-apex", "skipped-step"), True, {"NPU_EMULATED_INF_NAN": "0"}),
    ],
)
def test_an_emulated_npu_keeps_them(
    npus: dict[str, str], tmp_path: Path, checks: tuple[str, ...], apex: bool, variables: dict[str, str]
) -> None:
    environ = {**npus, **environment(apex=apex), **variables}
    verdicts = prove(tmp_path, "--device", "npu", "--npus", "1", "--only", *checks, environ=environ)
    assert verdicts == dict.fromkeys(("open", *checks), "passed")


def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    verdicts = prove(tmp_path, "--device", "cpu", "--npus", "2", "--only", "data-parallel", environ={})
    assert verdicts == dict.fromkeys(("open", "data-parallel"), "passed")
