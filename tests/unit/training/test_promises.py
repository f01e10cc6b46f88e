"""The checks of training's promises name each kind of difference between runs, and find none in equal runs."""

import json
import math
import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from trainer.proof import captured, promises, small_runs
from trainer.proof.check import CheckPlace, Context
from trainer.proof.small_runs import SmallRun, run_environment
from trainer.shared.errors import TrainerError

LOSSES = (1.5, 1.25, 1.75)
PLACE = CheckPlace("cpu", (0,), 0, 0)


@dataclass
class Runs:
    """Stands for the trainer: a run whose settings have all values of an answer's key leaves what the answer says."""

    folder: Path
    answers: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]] = ()
    started: list[str] = field(default_factory=list)

    def run(self, _context: Context, name: str, **options: Any) -> SmallRun:
        self.started.append(name)
        answer: dict[str, Any] = {
            "losses": LOSSES,
            "state": b"state",
            "code": 0,
            "output": "[rank 0 cpu:0 #1] resumed ",
        }
        for settings, changes in self.answers:
            if settings.items() <= {"device": "own", **options, "name": name}.items():
                answer |= changes
        run = self.folder / name
        checkpoint = run / "checkpoints/step-000000024"
        checkpoint.mkdir(parents=True, exist_ok=True)
        (checkpoint / "state.safetensors").write_bytes(answer["state"])
        rows = [{"kind": "step", "loss": loss if math.isfinite(loss) else None} for loss in answer["losses"]]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return SmallRun(answer["code"], answer["output"], run, answer.get("acted_s", 0.0))


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    own = Runs(tmp_path)
    monkeypatch.setattr(small_runs, "run_trainer", own.run)
    monkeypatch.setattr(promises, "run_trainer", own.run)
    monkeypatch.setattr(captured, "run_trainer", own.run)
    monkeypatch.setattr(small_runs, "_FIGURES", {})
    return own


KILLED = ({"name": "killed", "at": "] checkpoint step="}, {"code": -signal.SIGKILL})
STOPPED = ({"name": "stopped", "at": "] step epoch=0"}, {"code": 75, "acted_s": 2.0})
RESUMED = {"resume": "auto"}
OTHER = {"losses": (1.5, 1.25, 1.7500001)}
CASES: dict[str, tuple[str, Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], str, str]] = {
    "same losses": ("fp32_losses", (), "passed", "0e+00"),
    "another order": ("fp32_losses", [({"device": "own"}, OTHER)], "passed", "6e-08"),
    "no update": (
        "fp32_losses",
        [({"device": "own"}, {"losses": (1.5, 1.2506, 1.75)})],
        "failed",
        "5e-04",
    ),
    "not a number": ("fp16_losses", [({"device": "own"}, {"losses": (1.5, math.nan, 1.75)})], "failed", "nan"),
    "rounded": ("bf16_losses", [({"device": "own"}, {"losses": (1.51, 1.24, 1.75)})], "passed", "8e-03"),
    "no update in fp16": ("fp16_losses", [({"device": "own"}, {"losses": (1.5, 2.1, 2.8)})], "failed", "7e-01, 6e-01"),
    "far away": ("bf16_losses", [({"device": "own"}, {"losses": (1.51, 1.24, 2.75)})], "failed", "6e-01"),
    "no O2": ("o2_losses", (), "impossible", "not for a CPU"),
    "all left out": (
        "skipped_step",
        [({}, {"output": "[rank 0 cpu:0 #2] step epoch=0 loss=1 skipped=1\n" * 3})],
        "passed",
        "3 of 3",
    ),
    "one taken": (
        "skipped_step",
        [({}, {"output": "[rank 0 cpu:0 #2] step epoch=0 loss=1 skipped=1\n" * 2})],
        "failed",
        "2 of 3",
    ),
    "killed": ("kill_and_resume", [KILLED, (RESUMED, {"code": 0})], "passed", "3 losses and the state"),
    "another state": (
        "kill_and_resume",
        [KILLED, (RESUMED, {"code": 0, "state": b"other"})],
        "failed",
        "only its state at the end",
    ),
    "another loss": ("kill_and_resume", [KILLED, (RESUMED, {"code": 0, **OTHER})], "failed", "from step 2 on"),
    "never the same": (
        "kill_and_resume",
        [KILLED, (RESUMED, {"code": 0, **OTHER}), ({"name": "again"}, {"state": b"again"})],
        "failed",
        "not deterministic",
    ),
    "from the beginning": (
        "kill_and_resume",
        [KILLED, (RESUMED, {"code": 0, "output": ""})],
        "failed",
        "began again",
    ),
    "stopped": ("stop_and_resume", [STOPPED, (RESUMED, {"code": 0})], "passed", "code 75 2.0 s after SIGTERM"),
    "stopped late": (
        "stop_and_resume",
        [(STOPPED[0], {"code": 75, "acted_s": 31.0}), (RESUMED, {"code": 0})],
        "failed",
        "31.0 s from SIGTERM",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_check_names_the_difference_of_its_runs(runs: Runs, case: str) -> None:
    name, runs.answers, verdict, text = CASES[case]
    outcome = getattr(promises, f"prove_{name}")(Context(PLACE, runs.folder, runs.folder, runs.folder, lambda _: None))
    assert (outcome.verdict, text in outcome.measured) == (verdict, True), outcome
    assert bool(outcome.advice) == (verdict == "failed")


NPUS = CheckPlace("npu", (0, 1), 0, 0)
GRAPH = {"graph": "on"}
UNABLE = "[rank 0 npu:0 #9] warning the device cannot capture the step, which runs eagerly: no\n"


@pytest.mark.parametrize(
    ("check", "place", "answers", "expected"),
    [
        ("captured_step", PLACE, (), ("impossible", "no graphs", 0)),
        ("captured_parallel", PLACE, (), ("impossible", "no graphs", 0)),
        ("captured_step", NPUS, (), ("passed", "3 losses and the state are the eager run's", 2)),
        ("captured_fp16", NPUS, (), ("passed", "bit for bit", 2)),
        ("captured_bf16", NPUS, [(GRAPH, OTHER)], ("failed", "from step 2 on", 2)),
        ("captured_o2", NPUS, [(GRAPH, {"output": UNABLE})], ("failed", "cannot capture the step", 1)),
        ("captured_parallel", NPUS, (), ("passed", "the losses in fp32, fp16, bf16, O2 are the eager runs'", 8)),
        ("captured_parallel", NPUS, [(GRAPH, OTHER)], ("passed", "fp32, fp16, bf16, O2", 8)),
        ("captured_parallel", NPUS, [(GRAPH, {"output": UNABLE})], ("failed", "cannot capture the step", 1)),
        (
            "captured_parallel",
            NPUS,
            [({"precision": "fp16", **GRAPH}, {"losses": (1.5, 2.1, 2.8)})],
            ("failed", "losses differ by 0e+00, 7e-01, 6e-01 in fp16", 4),
        ),
    ],
)
def test_captured_steps_are_compared_with_eager_ones_in_each_arithmetic(
    runs: Runs,
    check: str,
    place: CheckPlace,
    answers: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
    expected: tuple[str, str, int],
) -> None:
    runs.answers = answers
    outcome = getattr(captured, f"prove_{check}")(Context(place, runs.folder, runs.folder, runs.folder, lambda _: None))
    verdict, text, started = expected
    assert (outcome.verdict, text in outcome.measured, len(runs.started)) == (verdict, True, started), outcome
    assert (outcome.advice == "leave --graph off") == (verdict == "failed")


def test_an_arithmetic_that_the_devices_do_not_have_is_left_out_of_their_captured_steps(runs: Runs) -> None:
    refused = {"code": 2, "output": "[rank 0 npu:0 #1] error --precision bf16: no bfloat16: use O2\n"}
    runs.answers = [({"precision": "bf16"}, refused)]
    context = Context(NPUS, runs.folder, runs.folder, runs.folder, lambda _: None)
    assert captured.prove_captured_bf16(context).verdict == "impossible"
    outcome = captured.prove_captured_parallel(context)
    assert (outcome.verdict, "fp32, fp16, O2" in outcome.measured) == ("passed", True), outcome


@pytest.mark.parametrize(
    ("check", "option", "reason"),
    [
        ("bf16_losses", "--precision bf16", "Ascend910A has no bfloat16"),
        ("captured_step", "--graph on", "apex's O2 reads each overflow on the host (fp16, bf16: do not)"),
    ],
)
def test_what_the_trainer_refuses_on_a_device_means_nothing_there(
    runs: Runs, check: str, option: str, reason: str
) -> None:
    output = f"[rank 0 npu:0 #1] error {option}: {reason}: do something else\n[node 0 #3] ended\n"
    runs.answers = [({}, {"code": 2, "output": output})]
    context = Context(CheckPlace("npu", (0,), 0, 0), runs.folder, runs.folder, runs.folder, lambda _: None)
    outcome = getattr(captured if check == "captured_step" else promises, f"prove_{check}")(context)
    assert (outcome.verdict, outcome.measured, len(runs.started)) == ("impossible", reason, 1)
    runs.answers = [({}, {"code": 2, "output": output.replace(option, "--device npu")})]
    with pytest.raises(TrainerError, match=f"^--device npu: {re.escape(reason)}$"):
        getattr(captured if check == "captured_step" else promises, f"prove_{check}")(context)


def test_checks_share_the_runs_that_they_compare_with(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    context = Context(PLACE, runs.folder, runs.folder, runs.folder, lambda _: None)
    checks = (promises.prove_fp32_losses, promises.prove_fp16_losses, promises.prove_bf16_losses)
    for check in checks:
        check(context)
    assert len(runs.started) == 5  # the CPU at two rates, and one of each format
    monkeypatch.setattr(small_runs, "_FIGURES", {})  # as in the process of another device
    for check in checks:
        check(context)
    assert len(runs.started) == 8  # the other device's own


@pytest.mark.parametrize(
    ("rank", "nodes", "verdict", "started"),
    [(0, (), "passed", 2), (1, (), "passed", 0), (2, (0, 0, 1, 1), "passed", 2), (0, (0, 1, 1, 1), "impossible", 0)],
)
def test_the_first_process_of_a_node_compares_its_devices_with_one(
    runs: Runs, rank: int, nodes: tuple[int, ...], verdict: str, started: int
) -> None:
    place = CheckPlace("cpu", (0, 1, 0, 1), rank, 0, node=nodes[rank] if nodes else None, nodes=nodes)
    outcome = promises.prove_data_parallel(Context(place, runs.folder, runs.folder, runs.folder, lambda _: None))
    assert (outcome.verdict, len(runs.started)) == (verdict, started)


def test_a_run_that_fails_is_no_figure(runs: Runs) -> None:
    runs.answers = [({}, {"code": 1, "output": "[rank 0 npu:0 #2] error: no such device\n[node 0 #3] ended\n"})]
    with pytest.raises(TrainerError, match="must end with 0, ended with exit code 1: error: no such device"):
        promises.prove_fp32_losses(Context(PLACE, runs.folder, runs.folder, runs.folder, lambda _: None))


@pytest.mark.parametrize(
    ("devices", "environ", "variable"),
    [
        ((1,), {}, "1"),
        ((1,), {"ASCEND_RT_VISIBLE_DEVICES": "2, 5"}, "5"),
        ((0, 1), {"ASCEND_RT_VISIBLE_DEVICES": "2,5"}, "2,5"),
    ],
)
def test_a_run_sees_only_its_devices_and_nothing_of_the_job_around_it(
    devices: tuple[int, ...], environ: dict[str, str], variable: str
) -> None:
    job = {"RANK": "1", "WORLD_SIZE": "2", "PNAS_BATCH_SIZE": "7", "RANK_TABLE_FILE": "/t", "MASTER_ADDR": "x"}
    kept = {"PATH": "/bin", "PNAS_DEVICE_FILES": "/dev2"}
    own = run_environment(CheckPlace("npu", devices, 0, 0), {**job, **kept, **environ})
    assert own == {**kept, "RANK_TABLE_FILE": "", "ASCEND_RT_VISIBLE_DEVICES": variable}
