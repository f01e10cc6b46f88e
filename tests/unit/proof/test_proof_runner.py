"""A check that hangs, dies or prints garbage costs one result; the others run, and no process is left."""

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.unit.proof import small_checks
from trainer.proof import place_run, runner
from trainer.proof.check import CheckFunction, CheckOutcome, CheckPlace, ProofCheck, Result, Scope
from trainer.proof.check_process import Folders
from trainer.proof.comparison import compare_links, compare_rates
from trainer.proof.places import NodeDevices
from trainer.proof.runner import run_check_at, run_checks
from trainer.topology.visible import DeviceKind

REPOSITORY = Path(__file__).parents[3]


def check_of(
    function: CheckFunction, scope: Scope = "device", *, limit_s: float = 60.0, opens: bool = False
) -> ProofCheck:
    name = function.__name__
    return ProofCheck(name, "a small check", scope, f"{small_checks.__name__}:{name}", limit_s, opens=opens)


OPEN = check_of(small_checks.passes, opens=True)
LAST = check_of(small_checks.writes_a_file)


def started(scope: Scope) -> ProofCheck:
    """Return a check whose time holds the start of the processes, so that a short limit of the next one does not."""
    return check_of(small_checks.passes, scope)


@pytest.fixture(autouse=True)
def no_process_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Let the check processes import this package; afterwards none of them or of their children lives."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("PNAS_TEST_OF", str(tmp_path))
    monkeypatch.setattr(place_run, "_PEERS_S", 0.5)
    yield
    mine = [process for process in psutil.process_iter() if process.pid != os.getpid() and _is_of(process, tmp_path)]
    _, alive = psutil.wait_procs(mine, timeout=30)
    assert [process.cmdline() for process in alive] == []
    assert not (tmp_path / "scratch").exists()


def _is_of(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.environ().get("PNAS_TEST_OF") == str(folder)
    except psutil.Error:
        return False


def run(
    folder: Path, *checks: ProofCheck, devices: int = 1, kind: DeviceKind = "cpu"
) -> dict[tuple[str, str], CheckOutcome]:
    results: list[Result] = []
    own = NodeDevices(kind, range(devices))
    assert run_checks(own, checks, Folders(folder / "scratch", folder), results.append) is None
    outcomes = {(result.check, result.place): result.outcome for result in results}
    assert len(outcomes) == len(results), "one result of each check at each place"
    return outcomes


def test_checks_that_pass_give_their_outcomes_and_finite_figures(tmp_path: Path) -> None:
    outcomes = run(tmp_path, OPEN, LAST, devices=2)
    assert outcomes == {
        (name, f"cpu:{device}"): CheckOutcome("passed", "as it should be", figures={"speed": 2.0})
        for name in ("passes", "writes_a_file")
        for device in (0, 1)
    }


@pytest.mark.parametrize(
    ("kind", "own", "measured"),
    [
        ("npu", {}, "…/kernels 600"),
        ("npu", {"ACL_OP_COMPILER_CACHE_DIR": "/kept", "HCCL_CONNECT_TIMEOUT": "130"}, "/kept 130"),
        ("cpu", {}, "nothing nothing"),
    ],
)
def test_processes_on_npus_share_compiled_kernels_and_wait_longer_than_a_check(
    kind: DeviceKind, own: dict[str, str], measured: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ACL_OP_COMPILER_CACHE_DIR", "HCCL_CONNECT_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    outcomes = run(tmp_path, check_of(small_checks.tells_its_variables), kind=kind)
    assert [outcome.measured for outcome in outcomes.values()] == [measured]


@pytest.mark.parametrize(
    ("function", "verdict", "measured"),
    [
        (small_checks.fails, "failed", "1 + 1 = 3"),
        (small_checks.raises, "failed", "RuntimeError: EZ9999 the driver says no"),
        (small_checks.prints_garbage_everywhere, "passed", "as it should be"),
        (small_checks.leaves_children, "passed", "as it should be"),
        (small_checks.closes_its_streams, "passed", "as it should be"),
        (small_checks.writes_a_torn_line, "unfinished", "its process died (exit code 3) while starting {name}"),
        (
            small_checks.has_a_defect,
            "unfinished",
            "its process died (exit code 1) while starting {name}; its last words: *'CheckOutcome' object has no "
            "attribute 'no_such_field'",
        ),
        (
            small_checks.dies,
            "unfinished",
            "its process died (killed) while adding; its last words: *noise hccp: lost \x1b[31mthe link",
        ),
    ],
)
def test_what_a_check_does_to_its_process_costs_its_own_result_only(
    function: CheckFunction, verdict: str, measured: str, tmp_path: Path
) -> None:
    outcomes = run(tmp_path, OPEN, check_of(function), LAST)
    outcome = outcomes[function.__name__, "cpu:0"]
    begin, _, end = measured.format(name=function.__name__).partition("*")
    assert outcome.verdict == verdict
    assert outcome.measured.startswith(begin)
    assert outcome.measured.endswith(end)
    assert outcomes["writes_a_file", "cpu:0"].verdict == "passed"


def test_a_check_that_hangs_is_ended_with_its_children_and_says_what_it_did(tmp_path: Path) -> None:
    outcomes = run(tmp_path, OPEN, check_of(small_checks.hangs, limit_s=1.0), LAST)
    assert outcomes["hangs", "cpu:0"].verdict == "unfinished"
    assert outcomes["hangs", "cpu:0"].measured == ("no answer within 1 s while copying 1 MiB: its process was ended")
    advice = "run this check again; if it ends like this once more, look at dmesg"
    assert outcomes["hangs", "cpu:0"].advice == advice
    assert outcomes["writes_a_file", "cpu:0"].verdict == "passed"


def test_processes_that_have_done_their_checks_end_by_themselves_or_after_some_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place_run, "_END_S", 60.0)
    run(tmp_path, check_of(small_checks.frees_its_device_at_its_end), devices=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cpu:0 is free", "cpu:1 is free"]
    monkeypatch.setattr(place_run, "_END_S", 0.5)
    outcomes = run(tmp_path, check_of(small_checks.hangs_at_its_end), LAST)
    assert [outcome.verdict for outcome in outcomes.values()] == ["passed"] * 2


def test_the_process_of_checks_that_start_runs_has_not_opened_the_device(tmp_path: Path) -> None:
    opens = check_of(small_checks.opens_an_ascend_910a, opens=True)
    tells = check_of(small_checks.tells_what_its_process_has_opened)
    outcomes = run(tmp_path, opens, tells)
    assert outcomes[tells.name, "cpu:0"].measured == "cpu:0"
    outcomes = run(tmp_path, opens, replace(tells, starts_runs=True))
    assert outcomes[tells.name, "cpu:0"].measured == "nothing"


def test_devices_that_hccl_does_not_connect_are_not_accused_and_checked_in_the_parts_that_it_connects(
    tmp_path: Path,
) -> None:
    opens = check_of(small_checks.opens_an_ascend_910a, opens=True)
    fails, works = check_of(small_checks.fails, "all"), check_of(small_checks.passes, "all")
    outcomes = run(tmp_path, opens, works, devices=3, kind="npu")
    of_all = {place: outcome for (name, place), outcome in outcomes.items() if name == works.name}
    assert "1, 2, 4 or 8 NPUs of a server" in of_all["npu:0 npu:1 npu:2"].measured
    assert {place: outcome.verdict for place, outcome in of_all.items()} == {
        "npu:0 npu:1 npu:2": "impossible",
        "npu:0 npu:1": "passed",
        "npu:1 npu:2": "passed",
    }
    place = CheckPlace("npu", (0, 1, 0), 0, 0, node=1, nodes=(0, 0, 1))
    results: list[Result] = []
    assert (
        run_check_at(place, fails, Folders(tmp_path / "scratch", tmp_path), results.append, model="Ascend910A") is None
    )
    assert [(result.place, result.outcome.verdict) for result in results] == [("node1/npu:0", "impossible")]


def test_no_check_is_tried_on_a_device_that_does_not_open(tmp_path: Path) -> None:
    opens = check_of(small_checks.fails, opens=True)
    outcomes = run(tmp_path, opens, LAST, check_of(small_checks.passes, "all"))
    assert outcomes["fails", "cpu:0"].verdict == "failed"
    assert outcomes["writes_a_file", "cpu:0"] == CheckOutcome("impossible", "cpu:0 does not open: 1 + 1 = 3")
    assert outcomes["passes", "cpu:0"] == CheckOutcome("impossible", "1 of the devices must open")


def test_a_device_that_does_not_open_after_a_death_is_not_tried_further(tmp_path: Path) -> None:
    opens = check_of(small_checks.hangs_second_time, opens=True, limit_s=3.0)
    outcomes = run(tmp_path, opens, check_of(small_checks.dies), LAST)
    assert outcomes["hangs_second_time", "cpu:0"] == CheckOutcome("passed", "a name")
    assert outcomes["dies", "cpu:0"].verdict == "unfinished"
    assert outcomes["writes_a_file", "cpu:0"] == CheckOutcome(
        "impossible", "cpu:0 does not open any more: no answer within 3 s while opening: its process was ended"
    )


def test_the_devices_of_a_place_are_named_where_they_differ(tmp_path: Path) -> None:
    differ, dies = check_of(small_checks.ranks_differ, "all"), check_of(small_checks.one_rank_dies, "all", limit_s=4.0)
    outcomes = run(tmp_path, differ, dies, check_of(small_checks.passes, "pair"), devices=3)
    assert outcomes["ranks_differ", "cpu:0 cpu:1 cpu:2"].measured == "cpu:1 cpu:2: 1 + 1 = 3"
    assert outcomes["one_rank_dies", "cpu:0 cpu:1 cpu:2"].measured == (
        "cpu:1: its process died (exit code 9) while exchange 7"
    )
    assert {place for name, place in outcomes if name == "passes"} == {"cpu:0 cpu:1", "cpu:1 cpu:2"}


def test_a_rank_that_fails_or_does_not_arrive_is_named_and_the_next_check_gets_new_processes(tmp_path: Path) -> None:
    fails, hangs = (
        check_of(small_checks.one_rank_fails, "all"),
        check_of(small_checks.one_rank_hangs, "all", limit_s=4.0),
    )
    dies = check_of(small_checks.peers_of_a_dead_rank_fail, "all")
    outcomes = run(tmp_path, fails, hangs, dies, check_of(small_checks.passes, "all"), devices=2)
    assert outcomes["one_rank_fails", "cpu:0 cpu:1"].verdict == "failed"
    assert outcomes["one_rank_fails", "cpu:0 cpu:1"].measured == "cpu:1: 1 + 1 = 3"
    assert outcomes["one_rank_hangs", "cpu:0 cpu:1"].verdict == "unfinished"
    assert outcomes["one_rank_hangs", "cpu:0 cpu:1"].measured.startswith("cpu:1 did not arrive: no answer within 4 s ")
    assert outcomes["peers_of_a_dead_rank_fail", "cpu:0 cpu:1"].measured == (
        "cpu:1: its process died (killed) while exchange 5"
    )
    assert outcomes["passes", "cpu:0 cpu:1"].verdict == "passed"


def test_a_rank_that_works_for_all_is_not_absent_if_it_hangs(tmp_path: Path) -> None:
    first = check_of(small_checks.only_first_works, "all", limit_s=2.0)
    outcomes = run(tmp_path, started("all"), first, devices=2)
    measured = outcomes["only_first_works", "cpu:0 cpu:1"].measured
    assert measured == "no answer within 2 s while cpu:0: a run with all devices: its process was ended"


def test_a_device_is_slow_if_it_is_slow_in_each_turn(tmp_path: Path) -> None:
    rate = replace(check_of(small_checks.is_disturbed), compare=compare_rates, is_timed=True)
    outcomes = run(tmp_path, OPEN, rate, devices=4)
    results = [outcomes["is_disturbed", f"cpu:{number}"] for number in range(4)]
    assert [result.verdict for result in results] == ["passed", "failed", "passed", "passed"]
    assert [result.measured for result in results if result.verdict == "passed"] == ["turn 1"] * 3
    assert "is 1, 25% of the others' 4: cpu:1 is slow" in results[1].measured


def test_a_device_that_stands_out_is_measured_again_while_the_others_rest(tmp_path: Path) -> None:
    rate = replace(check_of(small_checks.is_disturbed), compare=compare_rates, is_timed=True)
    run(tmp_path, OPEN, rate, devices=3)
    notes = (tmp_path / "turns").read_text().splitlines()
    assert notes[6:] == [f"{device} {what}" for device in (0, 1, 2) for what in ("begins", "ends")] * runner._TURNS


def test_a_device_that_hangs_with_each_partner_is_named_and_the_pairs_do_not_hang_again(tmp_path: Path) -> None:
    hangs = replace(
        check_of(small_checks.second_device_hangs, "pair", limit_s=2.0), compare=compare_links, is_timed=True
    )
    outcomes = run(tmp_path, started("pair"), hangs, devices=3)
    pairs = {place: outcome for (name, place), outcome in outcomes.items() if name == hangs.name}
    assert {place: outcome.verdict for place, outcome in pairs.items()} == {
        "cpu:0 cpu:1": "unfinished",
        "cpu:1 cpu:2": "unfinished",
    }
    for outcome in pairs.values():
        assert outcome.measured.startswith("cpu:1 does not finish with any of its partners: no answer within 2 s ")
    assert len((tmp_path / "tries").read_text().splitlines()) == 4, "two processes of each pair"


def test_no_device_is_measured_again_whose_model_is_another_one(tmp_path: Path) -> None:
    rate = replace(check_of(small_checks.is_disturbed), compare=compare_rates)
    run(tmp_path, OPEN, rate, devices=3)
    assert len((tmp_path / "turns").read_text().splitlines()) == 6


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_processes_and_keeps_the_results(number: signal.Signals, tmp_path: Path) -> None:
    results: list[Result] = []

    def report(result: Result) -> None:
        results.append(result)
        if len(results) == 2:
            threading.Timer(0.5, os.kill, (os.getpid(), number)).start()

    checks = (OPEN, check_of(small_checks.hangs), LAST)
    assert run_checks(NodeDevices("cpu", range(2)), checks, Folders(tmp_path / "scratch", tmp_path), report) == number
    first, second = results[:2], results[2:]
    assert [result.check for result in first] == ["passes", "passes"]
    assert {(result.check, result.outcome.verdict) for result in second} == {("hangs", "unfinished")}
    assert second[0].outcome.measured.startswith("interrupted while ")
