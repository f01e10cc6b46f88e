"""`python -m tests` counts finished tests, estimates the time left, and knows which tests failed."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.__main__ import EVERYTHING, progress_line
from tests.progress import Progress, estimate_s, read_progress

ROOT = Path(__file__).parents[3]


def test_pytest_writes_the_total_and_each_finished_and_failed_test(tmp_path: Path) -> None:
    source = "import pytest\n@pytest.mark.parametrize('n', range(3))\ndef test_small(n): assert n != 1\n"
    (tmp_path / "test_it.py").write_text(source)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    file = tmp_path / "progress"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.progress", f"--progress-file={file}", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 1
    progress = read_progress(file)
    assert (progress.total, progress.done, progress.failed) == (3, 3, ("test_it.py::test_small[1]",))
    assert progress.usual_s == pytest.approx(progress.done_s)


def test_a_run_that_has_not_written_yet_has_no_total(tmp_path: Path) -> None:
    assert read_progress(tmp_path / "missing") == Progress()


def test_the_usual_seconds_of_the_finished_tests_give_the_estimate() -> None:
    many_short, few_long = Progress(1000, 0, 60.0, 0.0), Progress(10, 5, 100.0, 40.0)
    assert estimate_s(60, [many_short, few_long]) == 60 * 120 / 40
    assert estimate_s(60, [Progress(), few_long]) == 60 * 60 / 40
    assert estimate_s(60, [Progress(100, 1, 100.0, 1.0)]) is None
    assert estimate_s(60, [Progress()]) is None


def test_the_progress_line_counts_tests_and_names_the_running_parts() -> None:
    progress = {"checks": Progress(), "whole runs": Progress(1200, 300, 2000.0, 500.0, ("a::b",))}
    progress["the rest"] = Progress(800, 800, 400.0, 400.0)
    assert progress_line(300, progress, ["checks", "whole runs"]) == (
        "5 min: 1,100 of 2,000 tests, 1 failed, about 8 min left (checks running, whole runs 300/1200)"
    )


def test_every_test_file_is_in_exactly_one_part_of_make_test() -> None:
    selections = [[str(word) for word in command if "pytest" not in str(word)] for command in EVERYTHING.values()]
    parts = [([word for word in words if word.startswith("tests")], _ignored(words)) for words in selections]
    for file in (str(file.relative_to(ROOT)) for file in sorted((ROOT / "tests").rglob("test_*.py"))):
        chosen = [paths for paths, ignored in parts if _is_below(file, paths) and not _is_below(file, ignored)]
        assert len(chosen) == 1, file


def test_every_file_that_a_part_names_exists() -> None:
    words = [str(word).removeprefix("--ignore=") for command in EVERYTHING.values() for word in command]
    assert not [word for word in words if word.startswith("tests/") and not (ROOT / word).exists()]


def _ignored(words: Sequence[str]) -> list[str]:
    return [word.removeprefix("--ignore=") for word in words if word.startswith("--ignore=")]


def _is_below(file: str, paths: Sequence[str]) -> bool:
    return any(file == path or file.startswith(f"{path}/") for path in paths)
