"""The projection for NPUs: its arithmetic against cases computed by hand, its options and its errors."""

import dataclasses
from pathlib import Path

import pytest

from benchmarks import projection
from benchmarks.projection import ASSUMPTIONS, exchange_s, main, project, replaced, section
from benchmarks.report import Figure, Result, Series, read_result, write_result
from docs import performance

COUNTS = {
    projection.EAGER: 1000.0,
    projection.CAPTURED: 10.0,
    projection.FLOPS: 100.0,
    projection.MOVED: 1000.0,
    projection.MOVED_ONCE: 500.0,
    projection.PARAMETERS: 10.0,
    projection.GRADIENTS: 160.0,
}
VALUES = {
    "batch-size": 10,
    "dispatch-us": 100,
    "replay-us": 1000,
    "peak-tflops": 100,
    "compute-share": 0.5,
    "memory-gbs": 1000,
    "memory-share": 0.5,
    "hccs-gbs": 10,
    "roce-gbs": 5,
    "hidden-share": 0.5,
    "wait-share": 0.2,
}
HOST_S = 1000 * 100e-6
REPLAYED_S = 10 * 100e-6 + 3 * 1000e-6
DEVICE_S = 10 * 100e9 / 50e12 + (10 * 1000e6 + 500e6 + 32 * 10e6) / 500e9
WITHIN_S = 2 * 7 / 8 * 160e6 / 10e9
BETWEEN_S = 2 * 15 / 16 * 20e6 / 5e9


def test_the_parts_of_a_step() -> None:
    assert pytest.approx((0.1, 0.004, 0.02 + 0.02164)) == (HOST_S, REPLAYED_S, DEVICE_S)
    assert pytest.approx((0.028, 0.0075)) == (WITHIN_S, BETWEEN_S)
    seconds = [exchange_s(160, VALUES, npus) for npus in (1, 8, 128)]
    assert seconds == pytest.approx([0, WITHIN_S, WITHIN_S + BETWEEN_S])


@pytest.mark.parametrize(
    ("npus", "captured", "images_s", "limit"),
    [
        (1, False, 10 / 0.1, "host"),
        (1, True, 10 / 0.04164, "device"),
        (8, False, 80 / ((0.1 + 0.014) / 0.8), "host"),
        (8, True, 80 / ((0.04164 + 0.028) / 0.8), "device"),
        (128, False, 1280 / ((0.1 + 0.01775) / 0.8), "host"),
        (128, True, 1280 / ((0.04164 + 0.0355) / 0.8), "device"),
    ],
)
def test_rates_computed_by_hand(npus: int, captured: bool, images_s: float, limit: str) -> None:
    rate = project(COUNTS, VALUES, npus, captured=captured)
    assert rate.images_s == pytest.approx(images_s)
    assert rate.limit == limit


def test_the_network_can_be_the_limit() -> None:
    assert project(COUNTS, {**VALUES, "hccs-gbs": 1}, 8, captured=True).limit == "network"


def test_one_value_replaces_all_three_of_an_assumption() -> None:
    dispatch = next(part for part in ASSUMPTIONS if part.name == "dispatch-us")
    assert replaced(dispatch, None) is dispatch
    assert replaced(dispatch, [90]).values == (90, 90, 90)
    assert replaced(dispatch, [90, 60, 30]).values == (90, 60, 30)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--dispatch-us", "0"], "--dispatch-us: 0 is out of range"),
        (["--dispatch-us", "130", "80"], "--dispatch-us: give one value, or a low, a middle and a high one"),
        (["--memory-share", "0.2", "0.3", "1.2"], "--memory-share: 0.2 0.3 1.2 is out of range"),
        (["--wait-share", "1"], "--wait-share: 1 is out of range"),
        (["--roce-gbs", "nan"], "--roce-gbs: nan is out of range"),
        (["--hccs-gbs", "fast"], "argument --hccs-gbs: invalid float value: 'fast'"),
    ],
)
def test_a_wrong_assumption_is_a_usage_error(words: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"error: {reason}")


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with results that have the counts above."""
    for benchmark, names in projection.COUNTS.items():
        figures = tuple(Figure(name, "", Series("ours", [COUNTS[name]])) for name in names)
        command = f"python -m benchmarks.{benchmark}"
        write_result(Result(1, benchmark, "", "", command, "2026-11-30", "0123456789", "", 0.0, {}, figures), tmp_path)
    monkeypatch.setattr(projection, "RESULTS", tmp_path)
    return tmp_path


def test_the_section_is_the_last_of_the_page(results: Path) -> None:
    lines = list(performance.page(results, list(projection.COUNTS)))
    projected = list(section(COUNTS))
    assert lines[-len(projected) :] == projected
    (results / "npu_host_work.json").unlink()
    assert not set(projected[:2]) & set(performance.page(results, list(projection.COUNTS)))


@pytest.mark.usefixtures("results")
def test_a_projection_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dispatch-us", "1000000"]) == 0
    out = capsys.readouterr().out
    assert "**No figure of this section was measured: nothing has run on an NPU.**" in out
    rows = [row.strip("| ").split(" | ") for row in out.splitlines() if row.startswith(("| 1 |", "| 8 |", "| 128 |"))]
    assert [row[:2] for row in rows] == [[npus, step] for npus in ("1", "8", "128") for step in ("eager", "captured")]
    assert all(cell.endswith("(host)") for row in rows for cell in row[2:])
    assert len([row for row in out.splitlines() if row.startswith("| `--")]) == len(ASSUMPTIONS)


def test_every_assumption_is_ordered_from_pessimistic_to_optimistic() -> None:
    columns = [{part.name: part.values[index] for part in ASSUMPTIONS} for index in range(3)]
    for npus in (1, 8, 128):
        for captured in (False, True):
            rates = [project(COUNTS, values, npus, captured=captured).images_s for values in columns]
            assert rates == sorted(rates)
    assert all(part.source for part in ASSUMPTIONS)


def test_missing_counts_are_one_error(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = results / "step_counts.json"
    write_result(dataclasses.replace(read_result(path), figures=()), results)
    assert main([]) == 1
    path.unlink()
    assert main([]) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"error: step_counts.json has no figure `{projection.FLOPS}`; measure again with "
        "`python -m benchmarks.step_counts`",
        f"error: {path}: No such file or directory; measure again with `python -m benchmarks.step_counts`",
    ]
