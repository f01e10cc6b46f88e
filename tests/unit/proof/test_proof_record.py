"""A run finds what prove has shown about its device with its versions; anything else is no record, with one reason."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.environment.facts import Facts
from trainer.proof.check import CheckOutcome, CheckVerdict, ProofCheck, Result
from trainer.proof.report import Proof, make_proof, proven_checks
from trainer.records.proof_record import ProvenCheck, ProvenDevice, add_to_proof, find_proof

NPU = ProvenDevice.of("Ascend910B3", {"torch": "2.9.0", "cann": "8.5.0", "numpy": "2.0"})
PASSED = ProvenCheck(verdict="passed", host="node-7", time="2026-11-30T21:00:00Z")
FAILED = ProvenCheck(verdict="failed", host="node-8", time="2026-11-30T22:00:00Z")
UNFINISHED = FAILED.model_copy(update={"verdict": "unfinished"})
FACTS = Facts(packages={"torch": "2.9.0", "numpy": "2.0"}, python="3.11.7", machine="aarch64", cann="8.5.0")


def test_results_of_several_proofs_come_together_and_the_latest_counts(tmp_path: Path) -> None:
    add_to_proof(tmp_path, NPU, {"captured-step": PASSED, "open": PASSED})
    add_to_proof(tmp_path, NPU, {"open": FAILED, "memory": UNFINISHED})
    found = find_proof(tmp_path, NPU)
    assert found.checks == {"captured-step": PASSED, "open": FAILED, "memory": UNFINISHED}
    assert (found.obstacle("captured-step"), len(found.sha256)) == (None, 64)
    assert found.obstacle("open") == f"{found.path}: open failed at 2026-11-30T22:00:00Z"
    assert found.obstacle("memory") == f"{found.path}: memory did not finish at 2026-11-30T22:00:00Z"
    assert found.obstacle("matmul") == f"{found.path}: prove has not run matmul here: run it"


@pytest.mark.parametrize(
    "other",
    [
        ProvenDevice.of("Ascend910B1", {"torch": "2.9.0", "cann": "8.5.0"}),
        ProvenDevice.of("Ascend910B3", {"torch": "2.9.0", "cann": "9.0.0"}),
        ProvenDevice.of("Ascend910B3", {"torch": "2.9.0"}),
    ],
)
def test_another_device_or_version_has_no_record(other: ProvenDevice, tmp_path: Path) -> None:
    assert find_proof(tmp_path, other).problem == f"prove has not run with {other}"
    add_to_proof(tmp_path, NPU, {"captured-step": PASSED})
    found = find_proof(tmp_path, other)
    assert found.obstacle("captured-step") == (
        f"prove has not run with {other}; {tmp_path}/.proofs has records of other devices or versions only"
    )
    assert find_proof(tmp_path, NPU).obstacle("captured-step") is None


def _torn(path: Path) -> None:
    path.write_text(path.read_text()[:100])


def _foreign(path: Path) -> None:
    path.write_text('{"apiVersion": "pnas/v1", "kind": "Proof"}')


def _deep(path: Path) -> None:
    path.write_text("[" * 100_000)


def _wrong_verdict(path: Path) -> None:
    path.write_text(path.read_text().replace('"passed"', '"passed, honestly"'))


def _of_another(path: Path) -> None:
    path.write_text(path.read_text().replace("8.5.0", "8.5.1"))


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_torn, "no record of prove, and ignored: remove it, and run prove again"),
        (_foreign, "no record of prove, and ignored: remove it, and run prove again"),
        (_deep, "no record of prove, and ignored: remove it, and run prove again"),
        (_wrong_verdict, "no record of prove, and ignored: remove it, and run prove again"),
        (_of_another, "a record of another device or version, and ignored"),
        (_folder, "cannot be read: Is a directory"),
    ],
)
def test_a_damaged_or_foreign_file_is_no_record(damage: Callable[[Path], None], reason: str, tmp_path: Path) -> None:
    add_to_proof(tmp_path, NPU, {"captured-step": PASSED})
    path = NPU.path(tmp_path)
    damage(path)
    found = find_proof(tmp_path, NPU)
    assert found.obstacle("captured-step") == f"{path}: {reason}"
    assert found.checks == {}
    if path.is_file():
        add_to_proof(tmp_path, NPU, {"open": PASSED})
        assert find_proof(tmp_path, NPU).checks == {"open": PASSED}, "the next proof replaces it"


def test_a_name_is_no_path(tmp_path: Path) -> None:
    hostile = ProvenDevice.of("../../etc/passwd\n", {"torch": "2.9.0"})
    add_to_proof(tmp_path, hostile, {"open": PASSED})
    assert find_proof(tmp_path, hostile).checks == {"open": PASSED}
    assert [path.name for path in tmp_path.iterdir()] == [".proofs"]


def _proof(*results: tuple[str, str, CheckVerdict, str]) -> Proof:
    checks = [ProofCheck(name, "", "device", "m:f", 1.0, opens=name == "open") for name in ("shm", "open", "sum")]
    outcomes = [Result(check, place, CheckOutcome(verdict, text), 0.5) for check, place, verdict, text in results]
    return make_proof("npu", FACTS, checks, outcomes, started_at=0.0, stopped=None)


def test_the_worst_verdict_of_all_devices_of_a_kind_is_recorded() -> None:
    proof = _proof(
        ("open", "npu:0", "passed", "Ascend910B3"),
        ("open", "npu:1", "passed", "Ascend910B3"),
        ("open", "npu:2", "passed", "Ascend910B1"),
        ("sum", "npu:0", "passed", ""),
        ("sum", "npu:1", "failed", ""),
        ("sum", "npu:2", "passed", ""),
        ("shm", "node", "unfinished", ""),
    )
    assert [result.check for result in proof.results] == ["shm", *["open"] * 3, *["sum"] * 3]
    records = {
        device.name: {name: check.verdict for name, check in checks.items()}
        for device, checks in proven_checks(proof).items()
    }
    assert records == {
        "Ascend910B3": {"shm": "unfinished", "open": "passed", "sum": "failed"},
        "Ascend910B1": {"shm": "unfinished", "open": "passed", "sum": "passed"},
    }
    (b3,) = [device for device in proven_checks(proof) if device.name == "Ascend910B3"]
    assert b3 == NPU


def test_what_means_nothing_or_was_interrupted_is_not_recorded() -> None:
    assert proven_checks(_proof(("open", "npu:0", "failed", "no answer"), ("sum", "npu:0", "impossible", ""))) == {}
    nothing: list[tuple[CheckVerdict, str]] = [("impossible", ""), ("unfinished", "interrupted while adding")]
    for verdict, text in nothing:
        proof = _proof(("open", "npu:0", "passed", "A"), ("sum", "npu:0", verdict, text))
        assert [list(checks) for checks in proven_checks(proof).values()] == [["open"]]
    assert json.loads(json.dumps(proof.device_names)) == {"npu:0": "A"}
