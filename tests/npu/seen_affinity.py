"""Writes the CPU_AFFINITY_CONF with which a worker starts, before it imports torch_npu, which reads it."""

import os
from pathlib import Path

SEEN = "PNAS_TEST_SEEN_AFFINITY"
"""The variable with the file."""

if SEEN in os.environ:
    Path(os.environ[SEEN]).write_text(os.environ.get("CPU_AFFINITY_CONF", "unset"))
