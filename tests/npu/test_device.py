"""The emulated device keeps its own promises: its checks run in a process of their own, in which it has its name."""

import os
import subprocess
import sys
from pathlib import Path


def test_the_device_does_what_a_backend_of_torch_has_to(npus: dict[str, str]) -> None:
    checks = Path(__file__).with_name("device_checks.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(checks)]
    done = subprocess.run(command, env={**os.environ, **npus}, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
