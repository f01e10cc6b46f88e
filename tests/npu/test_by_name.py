"""A checkout has emulated NPUs by name, `--device npu-emulated`; an installed package does not."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.local.resumable_runs import recipe
from tests.npu.conftest import SHORT
from trainer.cli import main
from trainer.shared.config import train

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.usefixtures("npus")
def test_the_launcher_trains_on_emulated_npus_in_bf16_and_shows_that_they_are_emulated(
    few_digits: Path, tmp_path: Path
) -> None:
    options = recipe("--device", "npu-emulated", "--npus", "1", "--precision", "bf16", *SHORT)
    folders = ("--data-path", str(few_digits), "--output", str(tmp_path / "output"), "--name", "by-name")
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "submit", "--backend", "local", *folders, *options],
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (start,) = (line for line in done.stdout.splitlines() if line.startswith("[rank 0 npu:0] start "))
    assert " device=Ascend910-emulated precision=bf16 " in start
    assert "device: npu-emulated\n" in (tmp_path / "output/by-name/config.yaml").read_text()


def test_without_a_checkout_the_device_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "EMULATED_MACHINE", tmp_path / "tests/npu/machine.py")
    assert main(["--device", "npu-emulated", "--data-path", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --device npu-emulated: the emulated NPU is a part of the tests, and there is no ")
    assert line.endswith("run it from a checkout of the source, or use --device cpu")


def test_a_missing_compiler_is_named_and_the_command_does_not_run(tmp_path: Path) -> None:
    machine = REPOSITORY / "tests/npu/machine.py"
    environ = {**os.environ, "HOME": str(tmp_path), "CXX": "no-such-compiler"}
    command = [sys.executable, str(machine), sys.executable, "-c", "print('has run')"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == (
        "error: no emulated NPUs: the emulated npu needs a C++ compiler: no no-such-compiler; install g++, or set CXX"
    )


def test_a_python_that_ignores_pythonpath_is_refused_and_does_not_restart_for_ever(tmp_path: Path) -> None:
    command = [sys.executable, "-E", "-m", "trainer", "--device", "npu-emulated", "--data-path", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    message = "error: --device npu-emulated: Python must read PYTHONPATH: start it without -I and -E\n"
    assert done.stderr == message


def test_the_environment_report_finds_them_and_has_no_problem_of_a_real_npu(npus: dict[str, str]) -> None:
    command = [sys.executable, "-m", "trainer", "env"]
    done = subprocess.run(
        command, env={**os.environ, **npus}, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120
    )
    lines = done.stdout.splitlines()
    assert "  emulated NPUs 0-7" in lines
    assert re.search(r"^  torch-npu     \S+\+emulated$", done.stdout, re.MULTILINE)
    # /dev/shm and open files are the machine's own.
    problems = [line for line in lines if line.startswith("problem: ") and "/dev/shm" not in line]
    assert (problems, done.returncode) == ([], int("problem: " in done.stdout))
    assert any(line.startswith("note: the NPUs are emulated: ") for line in lines)
