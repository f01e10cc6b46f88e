"""Steps are captured where the user asks for it, or where the record of prove shows that it works: else one line."""

from pathlib import Path

import pytest
import torch

from trainer.devices.cpu import CpuDevice
from trainer.environment.facts import Facts
from trainer.proof.catalogue import CHECKS
from trainer.records.proof_record import ProvenCheck, add_to_proof
from trainer.shared.config import TrainConfig
from trainer.shared.container import node_name
from trainer.shared.errors import UsageError
from trainer.training.optimizer import OPTIMIZERS
from trainer.training.resume import RESUMED
from trainer.worker import graph, proven
from trainer.worker.graph import captured_checks, captures_steps
from trainer.worker.proven import proof_of
from trainer.worker.start import build_training, make_watchdog
from trainer.worker.task import WorkerTask


class CapturingDevice(CpuDevice):
    """A CPU as another kind of device that could capture steps, except if it has an obstacle."""

    kind = "cuda"
    obstacle: str | None = None

    def graph_obstacle(self) -> str | None:
        return self.obstacle


def choose(
    run: Path,
    device: CpuDevice,
    *,
    precision: str = "fp32",
    mode: str = "full",
    choice: str = "auto",
    ranks: int = 1,
    **others: object,
) -> bool:
    weights = Path("w") if mode == "eval" else None
    settings = {"graph": choice, "precision": precision, "mode": mode, "weights": weights, **others}
    config = TrainConfig.model_validate(settings)
    return captures_steps(WorkerTask(config, run, world_size=ranks), config, device, proof_of(run.parent, device), None)


def prove(runs: Path, device: CpuDevice, verdict: str, *checks: str) -> None:
    found = proof_of(runs, device)
    check = ProvenCheck.model_validate({"verdict": verdict, "time": "2026-11-30T21:00:00Z"})
    checks = checks or captured_checks("fp32", 1)
    add_to_proof(runs, found.device, node_name(), dict.fromkeys(checks, check))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "O2"])
def test_the_checks_that_auto_asks_for_exist_and_try_every_optimizer(precision: str) -> None:
    assert {check.name for check in CHECKS}.issuperset(captured_checks(precision, 2))
    assert list(OPTIMIZERS) == [TrainConfig().optimizer], "the runs of these checks have no other one"


def test_auto_captures_only_the_arithmetic_and_the_devices_that_were_tried(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device, run = CapturingDevice(), tmp_path / "run"
    prove(tmp_path, device, "passed", "captured-step", "captured-fp16")
    assert choose(run, device, precision="fp16")
    assert not choose(run, device, precision="bf16")
    assert not choose(run, device, precision="fp16", ranks=2)
    prove(tmp_path, device, "passed", "captured-parallel")
    assert choose(run, device, precision="fp16", ranks=2)
    lines = capsys.readouterr().out.splitlines()
    assert ' auto=on reason="captured-step, captured-fp16 passed on ' in lines[0]
    assert "prove has not run captured-bf16 here: run it" in lines[1]
    assert "prove has not run captured-parallel here: run it" in lines[2]
    assert ' auto=on reason="captured-step, captured-fp16, captured-parallel passed on ' in lines[3]


def test_auto_follows_the_record_and_says_so_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device, run = CapturingDevice(), tmp_path / "run"
    assert not choose(run, device)
    prove(tmp_path, device, "failed")
    assert not choose(run, device)
    prove(tmp_path, device, "passed")
    assert choose(run, device)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" time=")[0].split()[1] for line in lines] == ["auto=off", "auto=off", "auto=on"]
    assert ' reason="prove has not run with ' in lines[0]
    assert f": captured-step failed on {node_name()} at 2026-11-30T21:00:00Z: run prove here again" in lines[1]


def test_the_choice_of_the_user_needs_no_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device, run = CapturingDevice(), tmp_path / "run"
    assert choose(run, device, choice="on")
    prove(tmp_path, device, "passed")
    assert not choose(run, device, choice="off")
    assert not choose(run, device, mode="eval")
    assert capsys.readouterr().out == ""


def test_an_obstacle_of_the_device_or_of_apex_is_stronger(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    device, run = CapturingDevice(), tmp_path / "run"
    prove(tmp_path, device, "passed", *captured_checks("fp16", 1))
    monkeypatch.setattr(device, "kind", "npu")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: object())
    assert choose(run, device, precision="fp16")
    capsys.readouterr()
    assert not choose(run, device, precision="O2")
    with pytest.raises(UsageError, match=r"^--graph on: apex's O2 reads each overflow on the host .*: leave --graph"):
        choose(run, device, precision="O2", choice="on")
    device.obstacle = "torch_npu 2.1 has no graphs"
    assert not choose(run, device, precision="fp16")
    with pytest.raises(UsageError, match=r"^--graph on: torch_npu 2\.1 has no graphs: leave --graph off$"):
        choose(run, device, precision="fp16", choice="on")
    assert capsys.readouterr().out == ""


def test_one_rank_without_the_record_keeps_all_from_capturing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = CapturingDevice()
    prove(tmp_path, device, "passed")
    monkeypatch.setattr(graph, "all_gather_object", lambda own, _group: [own, "prove has not run with Ascend910B1"])
    assert not choose(tmp_path / "run", device)
    assert ' auto=off reason="prove has not run with Ascend910B1"' in capsys.readouterr().out


def test_auto_captures_no_compiled_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device, run = CapturingDevice(), tmp_path / "run"
    prove(tmp_path, device, "passed")
    assert not choose(run, device, compile=True)
    assert capsys.readouterr().out == ""


def test_the_check_that_a_resumed_run_asks_for_exists() -> None:
    assert RESUMED in [check.name for check in CHECKS]


@pytest.mark.parametrize(("device", "reads"), [(CapturingDevice(), 1), (CpuDevice(), 0)])
def test_a_rank_reads_the_record_once_and_on_a_cpu_never(
    device: CpuDevice, reads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def read_facts(*_words: object, **_options: object) -> Facts:
        calls.append(1)
        return Facts(packages={}, python="3.11", machine="x")

    monkeypatch.setattr(proven, "read_facts", read_facts)
    config = TrainConfig(model="pnasnet5tiny", image_size=32, batch_size=4, precision="fp32", device="cpu")
    task = WorkerTask(config, tmp_path / "run")
    training = build_training(
        task, config, device, torch.device("cpu"), weights=None, num_classes=10, watchdog=make_watchdog(task)
    )
    assert training.proof.problem, "nothing is proven here"
    assert len(calls) == reads
