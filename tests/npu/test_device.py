"""The emulated device keeps its promises: its checks run in a separate process, in which the device has its name."""

import os
import subprocess
import sys
from pathlib import Path

from tests.npu.conftest import SHORT, Run


def test_the_device_works_as_a_backend_of_torch(npus: dict[str, str]) -> None:
    checks = Path(__file__).with_name("device_checks.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(checks)]
    done = subprocess.run(command, env={**os.environ, **npus}, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_variables_choose_internal_formats_and_compiled_kernels(run: Run, tmp_path: Path) -> None:
    log = tmp_path / "calls"
    chosen = {"ALLOW_INTERNAL_FORMAT": "enable", "ACL_OP_JIT_COMPILE": "enable", "NPU_EMULATED_LOG": str(log)}
    done = run("formats", *SHORT, environ=chosen)
    assert done.code == 0, done.stdout
    calls = [line.partition(" ")[2] for line in log.read_text().splitlines()]
    assert "set_compile_mode(jit_compile=True)" in calls
    assert "set_option(ALLOW_INTERNAL_FORMAT=enable)" in calls
