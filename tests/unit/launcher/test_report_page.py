"""A report shows what a run's folder has, says what it lacks, and takes nothing in it for markup."""

import html
import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.cli import main
from launcher.local import records
from launcher.results.charts import Chart, Line, draw
from launcher.results.page import Subject, report_page
from launcher.results.run_folder import read_run
from tests.documents import one_document
from tests.run_folders import ATTEMPTS, STEPS, write_run

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\x1b[31m\u202e{{ 7*7 }}"


def page_of(folder: Path, **known: Any) -> str:
    return report_page([Subject(folder.name, read_run(folder), "Succeeded", **known)], now=0.0)


def text_of(page: str) -> str:
    """Return a page's text as a reader sees it."""
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def test_a_page_has_curves_attempts_settings_and_provenance(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r1", attempts=ATTEMPTS)
    (run / "PnasNet5Tiny_bs32_8p_acc.log").write_text("Network = PnasNet5Tiny\nActualFPS = 2800.123\n")
    page = page_of(run, origins={"lr": "flag", "image": "cluster defaults"}, pods={"image": "example/pnas:1"})
    text = text_of(page)
    for part in (
        "r1 Succeeded",
        "best top-1 83.62 % after epoch 3",
        "speed 2800.123 images/s",
        f"steps {3 * STEPS}",
        "1 npu-node-17 2026-11-30T10:00:00Z 2026-11-30T10:40:00Z the beginning - 45 failed rank 3 on npu:3: killed by",
        "2 npu-node-18 2026-11-30T10:42:05Z 2026-11-30T12:00:00Z checkpoints/step-000000040 2 min 5 s 120 succeeded -",
        "lr 0.1 flag image example/pnas:1 cluster defaults 5 defaults",
        "versions torch_npu 2.9.0",
    ):
        assert part in text
    figures = re.findall(r"<figcaption>(.*?)</figcaption>(.*?)</figure>", page, re.DOTALL)
    assert [title for title, _ in figures] == ["Loss", "Top-1 accuracy, %", "Learning rate", "Speed, images/s"]
    for _, figure in figures[:2]:
        assert (figure.count("<circle"), figure.count('class="mark"')) == (3, 3), "one for each evaluation"


def _write_attempts(run: Path, **values: object) -> None:
    (run / "attempt.json").write_text(json.dumps({"attempt": 1}))
    (run / "attempt-2.json").write_text(json.dumps({"attempt": 2, "started": "2026-11-30T11:00:00Z", **values}))


@pytest.mark.parametrize(
    ("spoil", "problems", "shown"),
    [
        (lambda run: (run / "metrics.jsonl").unlink(), [], "recorded no step and no evaluation"),
        (lambda run: (run / "metrics.jsonl").write_text(""), [], "recorded no step and no evaluation"),
        (
            lambda run: (run / "metrics.jsonl").write_bytes(b'\xff\x00{"kind"\n[1]\n{"kind": 3}\n{"kind": "step"}\n'),
            ["metrics.jsonl: 4 damaged lines left out"],
            "recorded no step and no evaluation",
        ),
        (
            lambda run: (run / "provenance.json").write_text("{" + "[" * 100_000),
            ["provenance.json: damaged, and left out"],
            "model pnasnet5tiny",
        ),
        (
            lambda run: (run / "config.yaml").write_text("a: [b"),
            ["config.yaml: damaged, and left out"],
            "model pnasnet5tiny",
        ),
        (lambda run: (run / "config.yaml").unlink(), [], "model pnasnet5tiny"),
        (lambda run: (run / "attempt.json").write_text('{"attempt": "x"}'), [], "best top-1"),
        (lambda run: (run / "attempt.json").write_text("[" * 100_000), [], "best top-1"),
        (lambda run: _write_attempts(run, gap_s="soon"), [], "best top-1"),
        (lambda run: _write_attempts(run, gap_s=1e300), [], "best top-1"),
        (
            lambda run: ((run / "metrics.jsonl").unlink(), (run / "metrics.jsonl").mkdir()),
            ["metrics.jsonl: cannot be read: Is a directory"],
            "recorded no step",
        ),
    ],
)
def test_a_damaged_run_has_a_page_that_says_what_is_left_out(
    tmp_path: Path, spoil: Callable[[Path], Any], problems: list[str], shown: str
) -> None:
    run = write_run(tmp_path / "r1")
    spoil(run)
    assert read_run(run).problems == problems
    text = text_of(page_of(run))
    for part in (*problems, shown):
        assert part in text


def test_half_a_last_line_of_a_run_that_goes_on_is_not_damage(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r1")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "epo')
    assert read_run(run).problems == []


@pytest.mark.parametrize("value", ["null", "1e400", "-1e308", "1e-320", '"6.9"', "true", "[1]"])
def test_a_loss_that_cannot_be_drawn_is_a_gap(tmp_path: Path, value: str) -> None:
    run = write_run(tmp_path / "r1")
    rows = (run / "metrics.jsonl").read_text().splitlines()
    rows[4] = re.sub(r'"loss": [^,]*', f'"loss": {value}', rows[4])
    rows[STEPS + 4 + 1] = re.sub(r'"loss": [^,]*', f'"loss": {value}', rows[STEPS + 4 + 1])
    (run / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    loss = next(part for part in page_of(run).split("<figure>") if "<figcaption>Loss" in part)
    assert loss.count('class="line c0"') == 3
    assert "nan" not in loss
    assert "inf" not in loss


def test_nothing_of_a_run_is_markup_or_controls_a_terminal(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "r1",
        attempts=[{"attempt": 1, "node": HOSTILE, "outcome": HOSTILE, "cause": HOSTILE, "started": HOSTILE}],
        settings={"data_path": HOSTILE, HOSTILE: 1},
        rows=[
            {"kind": HOSTILE, "device": HOSTILE, HOSTILE: 3, "global_step": 1},
            {"kind": "corruption", HOSTILE: HOSTILE},
            {"kind": "eval", "epoch": 3, "top1": HOSTILE},
        ],
    )
    (run / "provenance.json").write_text(json.dumps({"host": HOSTILE, HOSTILE: HOSTILE, "versions": {HOSTILE: 1}}))
    page = page_of(run, origins={"lr": HOSTILE}, reason=HOSTILE, facts={HOSTILE: HOSTILE}, again=HOSTILE)
    assert "alert(1)" in page
    assert "{{ 7*7 }}" in page
    assert not re.search(r"<script|<img|[\x00-\x08\x0b-\x1f\u202e]", page)


@pytest.mark.parametrize(("nodes", "legend"), [(1, "npu:0 npu:1"), (2, "node 0 npu:0 node 0 npu:1 node 1 npu:0")])
def test_values_of_devices_over_time_have_a_chart_each(tmp_path: Path, nodes: int, legend: str) -> None:
    samples = [
        {"kind": "hardware", "time": f"2026-11-30T10:{minute:02}:00Z", "node": node, "device": f"npu:{device}"}
        | {"name": "910A", "memory_used_mib": 9 + minute}
        for minute in (0, 5, 9)
        for node in range(nodes)
        for device in range(2)
    ]
    page = page_of(write_run(tmp_path / "r1", rows=samples))
    assert "hardware: memory used, MiB" in page
    assert legend in text_of(page)
    assert ">minutes<" in page


def test_the_parts_of_the_time_are_added_up_and_the_largest_comes_first(tmp_path: Path) -> None:
    rows = [
        {"kind": "time", "global_step": 9 + 10 * n, "data_s": 6.0, "device_s": 3.0 + n, "limit": "data"} for n in (0, 1)
    ]
    page = page_of(write_run(tmp_path / "r1", rows=[*rows, {"kind": "time", "data_s": "x", "device_s": -1}]))
    assert "Where the time goes data 12 s 63.2 % device 7.0 s 36.8 %" in text_of(page)
    assert "<figcaption>Share of the time, %" in page
    assert "time: " not in page


def test_two_runs_are_compared_by_what_differs_first(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", attempts=ATTEMPTS),
        write_run(tmp_path / "b", lr=0.05, settings={"label_smoothing": 0.1}),
    ]
    subjects = [Subject(run.name, read_run(run), "Succeeded") for run in runs]
    text = text_of(report_page(subjects, now=0.0))
    first = text[text.index("What differs") :]
    assert first.startswith("What differs name a b lr 0.1 0.05 label_smoothing - 0.1 Results a b top-1 83.62 % 83.62 %")
    assert "Attempts of a" in text


def test_equal_runs_differ_in_nothing(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / name)) for name in "ab"]
    page = report_page([Subject(run.folder.name, run, "Succeeded") for run in runs], now=0.0)
    assert "No setting and no part of the provenance differs." in page


def test_a_line_of_many_points_is_drawn_by_few_with_its_range() -> None:
    points = [(float(step), float(step % 7)) for step in range(200_000)]
    svg = draw(Chart("x", [Line("", points)]))
    assert len(svg) < 20_000
    assert svg.count('class="band') == 1


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [-3.0, -3.0], [1e-9, 2e-9], [1e29, -1e29], [1.0, 1.0 + 1e-13]])
def test_every_range_of_values_has_axes(values: list[float]) -> None:
    svg = draw(Chart("x", [Line("", list(enumerate(values)))], may_be_log=True))
    places = [float(number) for number in re.findall(r"[MVHL ](-?[\d.]+)", svg)]
    assert all(-1 <= place <= 421 for place in places), svg


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a local job's run; the job has ended."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = records.state_home({"XDG_STATE_HOME": str(tmp_path / "state")}) / "r1"
    folder.mkdir(parents=True)
    output = tmp_path / "output" / "r1"
    record = {"name": "r1", "command": ["x"], "cwd": str(tmp_path), "output": str(output), "created": 1.0}
    spec = {"train": {"mode": "full", "lr": 0.1}, "origins": {"lr": "flag"}, "backend": "local"}
    records.write_record(folder / records.JOB, "LocalJob", {**record, "host": socket.gethostname(), "spec": spec})
    records.write_record(folder / records.EXIT, "exit", {"returncode": 1, "ended": 2.0})
    (folder / records.CONSOLE).write_text("error: no more memory\n")
    return output


def test_a_failed_job_has_a_page_with_its_cause_and_events(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(job)
    assert main(["report", "r1"]) == 0
    assert capsys.readouterr().out == "report-r1.html\n"
    text = text_of(Path("report-r1.html").read_text())
    for part in ("r1 Failed", "no more memory", "ended: Failed", "lr 0.1 flag", "submit --name r1 --resume auto"):
        assert part in text
    assert main(["report", "r1", "--json"]) == 0, "a report may replace a report"
    document = one_document(capsys.readouterr().out, "Report")
    assert (document["page"], document["problems"]) == ("report-r1.html", [])


def test_a_job_without_its_folder_has_a_page(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report"]) == 0
    assert capsys.readouterr().err == (f"job r1\nwarning: r1: {job}: cannot be read: No such file or directory\n")
    assert "no more memory" in text_of(Path("report-r1.html").read_text())


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["none"], 4, "there is no job `none` on this machine; see `python -m launcher list`"),
        (["./none"], 2, "none: no such folder; give a job's name, or the folder of a run"),
        (["./file"], 2, "file: not a folder; give a job's name, or the folder of a run"),
        (["./empty"], 2, "empty: no run has begun here; give the folder with its config.yaml, as OUTPUT/NAME"),
        (["./output/r1", "--to", "file"], 6, "file exists and is no report: choose another place by --to"),
        (["./output/r1", "--to", "empty"], 74, "empty: cannot be read: Is a directory; choose another place by --to"),
        (
            ["./output/r1", "--to", "no/page.html"],
            74,
            "no/page.html: cannot be written: No such file or directory; choose another place by --to",
        ),
        (
            ["./output/r1", "./empty\x1b[31m"],
            2,
            "empty\\x1b[31m: no such folder; give a job's name, or the folder of a run",
        ),
    ],
)
def test_a_report_that_cannot_be_written_is_one_line(
    job: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, error: str
) -> None:
    write_run(job)
    Path("file").write_text("mine")
    Path("empty").mkdir()
    assert main(["report", *words]) == code
    assert capsys.readouterr() == ("", f"error: {error}\n")
    assert Path("file").read_text() == "mine"
