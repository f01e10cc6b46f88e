"""A run finds what prove has shown about its device with its versions; anything else is no record, with one reason."""

import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trainer.environment.facts import Facts
from trainer.proof.check import CheckOutcome, CheckVerdict, ProofCheck, Result
from trainer.proof.report import Proof, make_proof, proven_checks
from trainer.records.proof_record import ProvenCheck, ProvenDevice, add_to_proof, find_proof

NPU = ProvenDevice.of("Ascend910B3", {"torch": "2.9.0", "cann": "8.5.0", "numpy": "2.0"})
PASSED = ProvenCheck(verdict="passed", time="2026-11-30T21:00:00Z")
FAILED = ProvenCheck(verdict="failed", time="2026-11-30T22:00:00Z")
UNFINISHED = FAILED.model_copy(update={"verdict": "unfinished"})
FACTS = Facts(packages={"torch": "2.9.0", "numpy": "2.0"}, python="3.11.7", machine="aarch64", cann="8.5.0")


def test_results_of_several_proofs_come_together_and_the_latest_counts(tmp_path: Path) -> None:
    add_to_proof(tmp_path, NPU, "node-7", {"captured-step": PASSED, "open": PASSED})
    add_to_proof(tmp_path, NPU, "node-7", {"open": FAILED, "memory": UNFINISHED})
    found = find_proof(tmp_path, NPU)
    assert found.hosts == {"node-7": {"captured-step": PASSED, "open": FAILED, "memory": UNFINISHED}}
    assert (found.obstacle("captured-step", "node-7"), len(found.sha256)) == (None, 64)
    here = found.folder
    time = "2026-11-30T22:00:00Z"
    assert found.obstacle("open", "node-7") == f"{here}: open failed on node-7 at {time}: run prove here again"
    assert found.obstacle("memory", "node-7") == (
        f"{here}: memory did not finish on node-7 at {time}: run prove here again"
    )
    assert found.obstacle("matmul", "node-7") == f"{here}: prove has not run matmul here: run it"


def test_a_machine_that_passes_does_not_make_up_for_another_one(tmp_path: Path) -> None:
    add_to_proof(tmp_path, NPU, "node-8", {"open": FAILED})
    before = find_proof(tmp_path, NPU)
    add_to_proof(tmp_path, NPU, "node-7", {"open": PASSED, "memory": PASSED})
    found = find_proof(tmp_path, NPU)
    assert found.obstacle("open", "node-7") is None
    for host in ("node-8", "node-9"):
        assert "open failed on node-8 at 2026-11-30T22:00:00Z: run prove " in (found.obstacle("open", host) or "")
    assert found.obstacle("memory", "node-9") is None, "a machine without a result of its own"
    assert before.sha256 != found.sha256


def test_the_failure_of_a_machine_that_is_gone_says_what_to_delete(tmp_path: Path) -> None:
    add_to_proof(tmp_path, NPU, "pod-abc", {"open": FAILED})
    (path,) = NPU.folder(tmp_path).glob("*.json")
    add_to_proof(tmp_path, NPU, "pod-def", {"open": PASSED})
    assert find_proof(tmp_path, NPU).obstacle("open", "pod-xyz") == (
        "open failed on pod-abc at 2026-11-30T22:00:00Z: run prove there again, "
        f"or delete {path} if that machine is gone"
    )
    path.unlink()
    assert find_proof(tmp_path, NPU).obstacle("open", "pod-xyz") is None


def test_proofs_that_end_at_once_lose_no_result(tmp_path: Path) -> None:
    names = [f"check-{number}" for number in range(8)]
    start = threading.Barrier(len(names))

    def prove(name: str) -> None:
        start.wait()
        add_to_proof(tmp_path, NPU, "node-7", {name: PASSED})

    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(prove, names))
    assert sorted(find_proof(tmp_path, NPU).hosts["node-7"]) == names


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
    add_to_proof(tmp_path, NPU, "node-7", {"captured-step": PASSED})
    found = find_proof(tmp_path, other)
    assert found.obstacle("captured-step", "node-7") == (
        f"prove has not run with {other}; {tmp_path}/.proofs has records of other devices or versions only"
    )
    assert find_proof(tmp_path, NPU).obstacle("captured-step", "node-7") is None


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


def _of_another_machine(path: Path) -> None:
    path.write_text(path.read_text().replace("node-7", "node-6"))


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
        (_of_another, "a record of another device, version or machine, and ignored"),
        (_of_another_machine, "a record of another device, version or machine, and ignored"),
        (_folder, "cannot be read: Is a directory"),
    ],
)
def test_a_damaged_or_foreign_file_is_no_record(damage: Callable[[Path], None], reason: str, tmp_path: Path) -> None:
    add_to_proof(tmp_path, NPU, "node-7", {"captured-step": PASSED})
    (path,) = NPU.folder(tmp_path).iterdir()
    damage(path)
    found = find_proof(tmp_path, NPU)
    assert found.obstacle("captured-step", "node-7") == f"{path}: {reason}"
    assert found.hosts == {}
    add_to_proof(tmp_path, NPU, "node-8", {"memory": PASSED})
    assert find_proof(tmp_path, NPU).hosts == {"node-8": {"memory": PASSED}}
    if path.is_file():
        add_to_proof(tmp_path, NPU, "node-7", {"open": PASSED})
        assert find_proof(tmp_path, NPU).hosts["node-7"] == {"open": PASSED}, "the next proof replaces it"


def test_a_file_in_the_place_of_the_records_is_told(tmp_path: Path) -> None:
    folder = NPU.folder(tmp_path)
    folder.parent.mkdir()
    folder.touch()
    assert find_proof(tmp_path, NPU).problem == f"{folder}: cannot be read: Not a directory"
    folder.unlink()
    folder.mkdir()
    assert find_proof(tmp_path, NPU).problem == f"{folder}: has no record of prove"


def test_a_name_is_no_path(tmp_path: Path) -> None:
    hostile = ProvenDevice.of("../../etc/passwd\n", {"torch": "2.9.0"})
    for host in ("../../etc/shadow\n", "a" * 300):
        add_to_proof(tmp_path, hostile, host, {"open": PASSED})
        assert find_proof(tmp_path, hostile).hosts[host] == {"open": PASSED}
    assert [path.name for path in tmp_path.iterdir()] == [".proofs"]
    assert len(list(hostile.folder(tmp_path).iterdir())) == 2


def _proof(*results: tuple[str, str, CheckVerdict, str], hosts: Mapping[str, str] | None = None) -> Proof:
    checks = [ProofCheck(name, "", "device", "m:f", 1.0, opens=name == "open") for name in ("shm", "open", "sum")]
    outcomes = [Result(check, place, CheckOutcome(verdict, text), 0.5) for check, place, verdict, text in results]
    return make_proof("npu", FACTS, checks, outcomes, hosts=hosts, started_at=0.0, stopped=None)


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
        for device, _, checks in proven_checks(proof)
    }
    assert records == {
        "Ascend910B3": {"shm": "unfinished", "open": "passed", "sum": "failed"},
        "Ascend910B1": {"shm": "unfinished", "open": "passed", "sum": "passed"},
    }
    assert NPU in [device for device, _, _ in proven_checks(proof)]


def test_each_machine_of_a_job_has_its_own_results() -> None:
    proof = _proof(
        *(("open", f"node{node}/npu:0", "passed", "Ascend910B3") for node in range(2)),
        ("sum", "node0/npu:0", "passed", ""),
        ("sum", "node1/npu:0", "failed", ""),
        ("shm", "node1", "failed", ""),
        hosts={"node0": "first", "node1": "second"},
    )
    verdicts = {host: {name: one.verdict for name, one in checks.items()} for _, host, checks in proven_checks(proof)}
    assert verdicts == {
        "first": {"open": "passed", "sum": "passed"},
        "second": {"open": "passed", "sum": "failed", "shm": "failed"},
    }


def test_what_means_nothing_or_was_interrupted_is_not_recorded() -> None:
    unopened = _proof(("open", "npu:0", "failed", "no answer"), ("sum", "npu:0", "impossible", ""))
    assert list(proven_checks(unopened)) == []
    nothing: list[tuple[CheckVerdict, str]] = [("impossible", ""), ("unfinished", "interrupted while adding")]
    for verdict, text in nothing:
        proof = _proof(("open", "npu:0", "passed", "A"), ("sum", "npu:0", verdict, text))
        assert [list(checks) for _, _, checks in proven_checks(proof)] == [["open"]]
    assert json.loads(json.dumps(proof.device_names)) == {"npu:0": "A"}
