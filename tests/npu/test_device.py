"""The emulated device keeps its promises: its checks run in a separate process, in which the device has its name."""

import os
import subprocess
import sys
from pathlib import Path


def test_the_device_works_as_a_backend_of_torch(npus: dict[str, str]) -> None:
    checks = Path(__file__).with_name("device_checks.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(checks)]
    done = subprocess.run(command, env={**os.environ, **npus}, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
