"""The results of benchmarks: what counts as missed, what a broken file says, and which benchmarks a command runs."""

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import peers, report
from benchmarks.__main__ import Outcome
from benchmarks.report import Bar, Benchmark, Figure, NotMeasuredError, Result, ResultError, Series
from docs import performance
from docs.__main__ import main as generate

MAKEFILE = (report.ROOT / "Makefile").read_text(encoding="utf-8")
SLOW = Figure("a step", "s", Series("ours", [0.9, 0.8, 4.0]), Series("timm", [1.0, 1.0, 4.0]), Bar(0.80))
"""Its ratios are 0.9, 0.8 and 1.0: the third turn was on a busy machine."""
GOOD = Figure("a rate", "images/s", Series("ours", [1200]), Series("torchvision", [400]), Bar(2, "at least"))
SMALL = Figure("memory", "MiB", Series("ours", [61.5]), bar=Bar(80, of="ours"))
RESULT = Result(
    1,
    "one",
    "A step",
    "At 331 px.",
    command="python -m benchmarks.one",
    date="2026-11-30",
    commit="0123456789",
    processor="a CPU, 2 CPUs",
    load=0.5,
    versions={"Python": "3.11.2"},
    figures=(SLOW, GOOD, SMALL),
)


def _benchmark(figures: Sequence[Figure] | BaseException) -> Benchmark:
    def measure(quick: bool) -> Sequence[Figure]:
        if isinstance(figures, BaseException):
            raise figures
        return figures[: 1 if quick else None]

    return Benchmark("one", "A step", "At 331 px.", measure, packages=("pytest",), peers={"stern": "v1"})


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(report, "QUICK_RESULTS", tmp_path / "quick")
    monkeypatch.setattr(sys, "argv", ["one"])
    return tmp_path


def test_a_missed_bar_is_shown_as_missed_and_counted(tmp_path: Path) -> None:
    report.write_result(RESULT, tmp_path)
    page = "\n".join(performance.page(tmp_path, ["one", "two"]))
    assert "2 of 3 bars are met. Missed:\n\n- a step (A step)\n" in page
    assert "Not measured yet: `python -m benchmarks.two`." in page
    assert [re.split(r" \| ", row.strip("| ")) for row in page.splitlines() if row.startswith("| a step")] == [
        [
            "a step",
            "ours: 0.9 (0.8 to 4) s",
            "timm: 1 (1 to 4) s",
            "0.9 (0.8 to 1)",
            "at most 0.8: **missed**",
            "3",
        ]
    ]
    assert "| a rate | ours: 1,200 images/s | torchvision: 400 images/s | 3 | at least 2: met | 1 |" in page
    assert "| memory | ours: 61.5 MiB |  |  | at most 80 MiB: met | 1 |" in page


def test_a_figure_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert report.read_result(report.write_result(RESULT, tmp_path)) == RESULT


@pytest.mark.parametrize(
    ("figure", "met"),
    [
        (dataclasses.replace(SLOW, bar=Bar(0.9)), True),
        (dataclasses.replace(SLOW, bar=None), True),
        (dataclasses.replace(GOOD, bar=Bar(3.1, "at least")), False),
        (dataclasses.replace(SMALL, bar=Bar(61, of="ours")), False),
        (dataclasses.replace(SLOW, bar=Bar(0.85, of="ours")), False),
    ],
)
def test_a_bar_holds_for_the_median_of_the_turns(figure: Figure, met: bool) -> None:
    assert figure.met is met


@pytest.mark.parametrize(
    ("series", "reason"),
    [
        ({"peer": Series("timm", [1.0])}, "another number of samples"),
        ({"peer": Series("timm", [1.0, 0.0, 1.0])}, "not all above 0"),
        ({"peer": None}, "needs a peer"),
    ],
)
def test_a_figure_that_makes_no_sense_is_refused(series: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        dataclasses.replace(SLOW, **series)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda raw: raw.update(format=0), "format: Input should be 1"),
        (lambda raw: raw["figures"][0].pop("unit"), "figures.0.unit: Field required"),
        (lambda raw: raw["figures"][1]["ours"].update(samples=[]), "figures.1.ours: Value error, ours has no samples"),
        (lambda raw: raw["figures"][0]["bar"].update(side="below"), "figures.0.bar.side: Input should be 'at most'"),
        (lambda raw: raw.update(host="a name"), "host: Unexpected"),
        (None, "the file: Invalid JSON"),
    ],
)
def test_a_broken_or_old_file_gives_one_line(
    change: Any, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = report.write_result(RESULT, tmp_path)
    raw = json.loads(path.read_text())
    if change is None:
        path.write_text(path.read_text()[:-10])
    else:
        change(raw)
        path.write_text(json.dumps(raw))
    monkeypatch.setattr(performance, "RESULTS", tmp_path)
    monkeypatch.setattr(performance, "ALL", ["one"])
    assert generate(["--check"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: {place}")
    assert line.endswith("measure again with `python -m benchmarks.one`")


def test_a_result_of_no_benchmark_is_refused(tmp_path: Path) -> None:
    report.write_result(RESULT, tmp_path)
    with pytest.raises(ResultError, match="no benchmark has this name"):
        list(performance.page(tmp_path, ["two"]))


def test_a_quick_run_leaves_the_published_result(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.run(_benchmark([SLOW, GOOD])) == report.MISSED
    published = (folders / "results" / "one.json").read_text()
    monkeypatch.setattr(sys, "argv", ["one", "--quick"])
    assert report.run(_benchmark([GOOD, SLOW])) == 0
    assert f"written: {folders / 'quick' / 'one.json'}" in capsys.readouterr().out
    assert (folders / "results" / "one.json").read_text() == published
    quick = report.read_result(folders / "quick" / "one.json")
    assert (quick.command, quick.figures) == ("python -m benchmarks.one --quick", (GOOD,))
    assert quick.versions.keys() == {"Python", "pytest", "stern"}


@pytest.mark.parametrize(
    ("reason", "code", "line"),
    [
        (NotMeasuredError("it needs root"), report.NOT_MEASURED, "not measured: one: it needs root\n"),
        (KeyboardInterrupt(), 130, "one: stopped; its last result stays\n"),
    ],
)
def test_a_benchmark_that_cannot_be_measured_says_so_in_one_line(
    reason: BaseException, code: int, line: str, folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.run(_benchmark([GOOD])) == 0
    assert report.run(_benchmark(reason)) == code
    assert capsys.readouterr().err == line
    assert report.read_result(folders / "results" / "one.json").figures == (GOOD,)


def test_every_benchmark_is_listed() -> None:
    folder = Path(command.__file__).parent
    modules = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.py")}
    benchmarks = {name for name, text in modules.items() if "\nBENCHMARK = " in text}
    assert sorted((*command.ALL, *command.LONG)) == sorted(benchmarks)
    assert set(command.QUICK) < benchmarks
    assert set(peers.NEEDS) < benchmarks
    assert all(f'\n    name="{name}",\n' in modules[name] for name in benchmarks)


@pytest.mark.parametrize(("words", "limits"), [([], command.ALL), (["--quick"], command.QUICK)])
def test_a_failure_stops_no_other_benchmark_and_is_named(
    words: list[str],
    limits: Mapping[str, int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    outcomes = {
        "benchmarks.model_step": Outcome(3, limits["model_step"], "round 7 of 7"),
        "benchmarks.startup": Outcome(1, 9.6, "OSError: no space"),
        "benchmarks.npu_host_work": Outcome(130, 51, "round 2 of 8", 50),
        "benchmarks.data_pipeline": Outcome(4, 1, "not measured: data_pipeline: it needs a disk"),
    }
    runs: list[tuple[str, ...]] = []

    def run_module(module: str, *arguments: str, limit_s: float | None = None) -> Outcome:
        assert (limit_s is None) == (module in {"benchmarks.peers", "docs"})
        runs.append((module, *arguments))
        return outcomes.get(module, Outcome(0, 2))

    monkeypatch.setattr(command, "_run_module", run_module)
    assert command.main(words) == 1
    assert runs == [
        ("benchmarks.peers", *limits),
        *((f"benchmarks.{name}", *words) for name in limits),
        *([] if words else [("docs",)]),
    ]
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == f"results: {'output/bench-quick' if words else 'benchmarks/results'}"
    assert len(lines) == len(limits) + 1
    assert {
        f"model_step      {limits['model_step']:5} s  measured: a bar is missed",
        "npu_host_work      51 s  failed: not done after 50 s: round 2 of 8",
        "startup            10 s  failed with exit code 1: OSError: no space",
        "data_pipeline       1 s  not measured: data_pipeline: it needs a disk",
        "launcher_start      2 s  measured",
    } <= set(lines)
    outcomes = {"benchmarks.data_pipeline": Outcome(4)}
    assert command.main(words) == 0


def test_a_benchmark_may_also_take_the_time_that_the_ones_before_have_left(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([4.0, 25.0, 0.5])
    limits: list[float | None] = []

    def run_module(module: str, *_: str, limit_s: float | None = None) -> Outcome:
        if module == "benchmarks.peers":
            return Outcome(0, 600.0)
        limits.append(limit_s)
        return Outcome(0, next(seconds))

    monkeypatch.setattr(command, "_run_module", run_module)
    monkeypatch.setattr(command, "QUICK", {"one": 10, "two": 10, "three": 5})
    assert command.main(["--quick"]) == 0
    assert limits == [10, 16, 5]  # the second one took long to stop


def test_the_limits_together_are_the_time_that_the_commands_promise() -> None:
    promised = {target: int(minutes) for target, minutes in re.findall(r"(bench.*?):.*\((\d+) minutes", MAKEFILE)}
    assert {"bench": sum(command.ALL.values()) / 60, "bench-quick": sum(command.QUICK.values()) / 60} == promised


@pytest.mark.parametrize(
    ("program", "code", "words"),
    [
        ("sys.stderr.write('half of it\\n'); sys.exit('no disk\\x1b[2J')", 1, "no disk\\x1b[2J"),
        ("sys.stderr.write('\\rround 1\\rround 2'); os.kill(os.getpid(), 9)", -9, "round 2"),
        ("pass", 0, ""),
    ],
)
def test_a_process_that_fails_leaves_its_reason(
    program: str, code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "ROOT", tmp_path)
    (tmp_path / "program.py").write_text(f"import os, sys; {program}")
    outcome = command._run_module("program")
    assert (outcome.code, outcome.last_words, outcome.limit_s) == (code, words, None)


def test_a_process_is_stopped_at_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "ROOT", tmp_path)
    (tmp_path / "program.py").write_text("import signal; signal.pause()")
    outcome = command._run_module("program", limit_s=1)
    assert outcome.code != 0
    assert str(outcome) == "failed: not done after 1 s: "


def test_ctrl_c_ends_the_command_and_generates_the_page(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs: list[str] = []

    def run_module(module: str, *_: str, limit_s: float | None = None) -> Outcome:
        runs.append(module)
        if len(runs) == 3:
            raise KeyboardInterrupt
        return Outcome(0)

    monkeypatch.setattr(command, "_run_module", run_module)
    first, second = list(command.ALL)[:2]
    assert command.main([]) == 130
    assert runs == ["benchmarks.peers", f"benchmarks.{first}", f"benchmarks.{second}", "docs"]
    assert f"stopped; finished: {first}\n" in capsys.readouterr().err


def test_a_result_names_no_machine(folders: Path) -> None:
    report.run(_benchmark([GOOD]))
    text = (folders / "results" / "one.json").read_text()
    host = subprocess.run(["uname", "-n"], capture_output=True, text=True, check=True).stdout.strip()
    assert host not in text
    assert not re.search(r"/(home|root|tmp|work)/", text)
