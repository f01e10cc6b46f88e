"""Imports stand at the top of a module; only a measured promise about a program's start allows an exception."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
LATE_IMPORT = re.compile(r"# noqa: PLC0415\b(.*)")
MOST = 20


def test_few_imports_stand_within_functions() -> None:
    files = [file for package in ("trainer", "launcher") for file in sorted((ROOT / package).rglob("*.py"))]
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    imports = [(line, match[1]) for line in lines if (match := LATE_IMPORT.search(line))]
    assert len(imports) <= MOST, "\n".join(line for line, _ in imports)
    assert [line for line, reason in imports if not reason.startswith("  # ")] == [], "say the reason on the line"


def test_the_launcher_imports_by_a_computed_name_only_its_job_kinds_and_the_completed_command() -> None:
    """The import rules do not see such an import."""
    users = [
        str(file.relative_to(ROOT))
        for file in sorted((ROOT / "launcher").rglob("*.py"))
        if re.search(r"import_module|__import__", file.read_text(encoding="utf-8"))
    ]
    assert users == ["launcher/commands/completion.py", "launcher/kinds/__init__.py"]
