"""A run on emulated NPUs is profiled by torch_npu's profiler, and every figure stays."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

from launcher.local.files import open_local_files
from launcher.results.file_client import FileClient
from tests.local.conftest import TrainerResult
from tests.local.job_runner import wait_until
from tests.local.resumable_runs import recipe
from tests.npu.conftest import O2
from trainer.shared.profiles import ProfileRequest

REQUEST = ProfileRequest(20261130171519123, rank=1, steps=3)


def test_a_profile_names_the_largest_kernels_and_changes_no_figure(
    npus: dict[str, str], in_o2: TrainerResult, few_digits: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    folders = ("--data-path", str(few_digits), "--output", str(tmp_path), "--run-name", "run")
    command = [sys.executable, "-m", "trainer", *folders, *recipe(*O2)]
    with subprocess.Popen(command, env={**os.environ, **npus}, stdout=subprocess.PIPE) as trainer:
        wait_until((run / "config.yaml").exists)
        with open_local_files(run) as channel:
            # The workers start for longer than this takes, and look before their first step.
            assert FileClient(channel).ask_for_profile(REQUEST.to_json()) == REQUEST.to_json()
        output, _ = trainer.communicate(timeout=600)
    assert trainer.returncode == 0, output
    answer = json.loads((run / REQUEST.answer).read_bytes())
    assert (answer["epoch"], answer["first_step"], answer["steps"]) == (0, 2, 3)
    (folder,) = (run / "profiles" / REQUEST.name).iterdir()
    assert folder.name.endswith("_ascend_pt")
    assert (run / answer["trace"]).parent == folder / "ASCEND_PROFILER_OUTPUT"
    assert len(answer["operators"]) == 3
    assert "convolution_backward" in {one["name"] for one in answer["operators"]}
    profiled = dataclasses.replace(in_o2, run=run)
    assert [profiled.metrics(kind) for kind in ("step", "eval")] == [in_o2.metrics(kind) for kind in ("step", "eval")]
