"""Imports stand at the top of a module; only a measured promise about a program's start allows an exception."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
LATE_IMPORT = re.compile(r"# noqa: PLC0415\b(.*)")
MOST = 15


def test_few_imports_stand_within_functions() -> None:
    files = [file for package in ("trainer", "launcher") for file in sorted((ROOT / package).rglob("*.py"))]
    late = [f"{file}: {line}" for file in files for line in file.read_text().splitlines() if LATE_IMPORT.search(line)]
    assert len(late) <= MOST, "\n".join(late)
