"""Each thing that is wrong with a node fails its check and no other; a healthy node passes them all."""

import dataclasses
import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest

from tests.unit.ranktable.test_environment import A2, HEALTHY, NOTES, RIGHT, WRONG
from trainer.environment.facts import Facts
from trainer.environment.parsing import Chip, NpuProcess
from trainer.proof import node, process
from trainer.proof.catalogue import CHECKS
from trainer.proof.check import CheckOutcome, CheckPlace, Context

NPU_NODE = CheckPlace("npu", (), 0, 0)
SECOND = Chip(1, 0, "910B1", "OK", "0000:01:00.0", 52675, 65536)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder for a node with two NPUs."""
    (tmp_path / "dev").mkdir()
    for number in (0, 1):
        (tmp_path / "dev" / f"davinci{number}").touch()
    monkeypatch.setenv("PNAS_DEVICE_FILES", str(tmp_path / "dev"))
    for name in ("RANK_TABLE_FILE", "ASCEND_RT_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(node, "_RANK_TABLE_S", 0.01)
    return tmp_path


def outcomes(folder: Path, facts: Facts, monkeypatch: pytest.MonkeyPatch) -> dict[str, CheckOutcome]:
    """Return what each check of a node says."""
    monkeypatch.setattr(node, "_facts", lambda: facts)
    context = Context(NPU_NODE, folder, folder, folder / "output", lambda _mark: None)
    checks = [check for check in CHECKS if check.scope == "node" and check.function.startswith(node.__name__)]
    return {check.name: process.load_check(check.function)(context) for check in checks}


def failed(folder: Path, facts: Facts, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    results = outcomes(folder, facts, monkeypatch)
    assert {outcome.verdict for outcome in results.values()} <= {"passed", "failed", "impossible"}
    assert all(outcome.expected for outcome in results.values() if outcome.verdict != "impossible")
    return {name: outcome.measured for name, outcome in results.items() if outcome.verdict == "failed"}


def test_a_healthy_node_passes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = outcomes(folder, RIGHT, monkeypatch)
    assert {name: outcome.measured for name, outcome in results.items() if outcome.verdict != "passed"} == {
        "rank-table": "there is no rank table: the ranks come from the options"
    }
    assert results["versions"].measured.startswith("pnas 0.1.0, torch 2.9.0+cpu, torch-npu 2.9.0, ")
    assert results["visible-devices"].measured == f"npu 0 1, by {folder}/dev/davinci*"
    assert list((folder / "output").iterdir()) == []


@pytest.mark.parametrize(("changed", "message"), WRONG, ids=[message for _, message in WRONG])
def test_each_problem_of_trainer_env_fails_one_check(
    changed: dict[str, Any], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = failed(folder, dataclasses.replace(RIGHT, **changed), monkeypatch)
    if changed.get("npu_smi") is A2:  # it also shows a process
        assert failures.pop("unused-devices") == "npu:1 is in use by 1 process"
    ((_name, text),) = failures.items()
    assert message in text


@pytest.mark.parametrize(("changed", "message"), NOTES, ids=[message for _, message in NOTES])
def test_a_note_of_trainer_env_fails_no_check(
    changed: dict[str, Any], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = failed(folder, dataclasses.replace(RIGHT, **changed), monkeypatch)
    assert set(failures) <= {"unused-devices"}, message


@pytest.mark.parametrize(
    ("processes", "second", "message"),
    [
        ((NpuProcess(1, 0, 4711, "python3"),), SECOND, "npu:1 is in use by 1 process"),
        ((NpuProcess(1, 0, 4711, "a"), NpuProcess(1, 0, 4712, "")), SECOND, "npu:1 is in use by 2 processes"),
        ((), SECOND, "npu:1: 52675 of 65536 MiB are in use by an unknown process"),
        ((NpuProcess(3, 0, 4711, "python3"),), HEALTHY.chips[1], None),
    ],
)
def test_a_device_with_a_process_of_another_user_is_named(
    processes: tuple[NpuProcess, ...],
    second: Chip,
    message: str | None,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    npu_smi = dataclasses.replace(HEALTHY, chips=(HEALTHY.chips[0], second), processes=processes)
    failures = failed(folder, dataclasses.replace(RIGHT, npu_smi=npu_smi), monkeypatch)
    assert failures == ({} if message is None else {"unused-devices": message})


def test_no_check_tells_the_processes_of_other_users(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = (NpuProcess(1, 0, 484706, "python3 (theirs)"), NpuProcess(0, 0, 4711, "theirs; and process 7 (x) too"))
    facts = dataclasses.replace(RIGHT, npu_smi=dataclasses.replace(HEALTHY, processes=theirs))
    texts = str(outcomes(folder, facts, monkeypatch))
    assert "npu:0 is in use by 1 process; npu:1 is in use by 1 process" in texts
    assert [private for private in ("484706", "4711", "theirs") if private in texts] == []


def test_a_low_limit_of_open_files_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = failed(folder, dataclasses.replace(RIGHT, open_files=256), monkeypatch)
    assert list(failures) == ["open-files"]
    assert failures["open-files"].startswith("256 files can be open at once; many loader workers need more: ulimit -n ")


@pytest.mark.parametrize(
    ("uid", "devices", "message"),
    [
        ("2a7c9a34-0000-4000-8000-000000000002", 2, "the table does not contain this pod"),
        ("2a7c9a34-0000-4000-8000-000000000001", 4, "asks for 4 npu devices, but 2 are visible"),
        ("2a7c9a34-0000-4000-8000-000000000001", 2, None),
    ],
)
def test_the_rank_table_is_compared_with_this_pod_and_its_devices(
    uid: str, devices: int, message: str | None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = [{"device_id": str(n), "device_ip": f"192.168.1.{n}", "rank_id": str(n)} for n in range(devices)]
    server = {"server_id": "2a7c9a34-0000-4000-8000-000000000001", "device": device}
    table = {"version": "1.0", "status": "completed", "server_count": "1", "server_list": [server]}
    (folder / "hccl.json").write_text(json.dumps(table))
    monkeypatch.setenv("RANK_TABLE_FILE", str(folder / "hccl.json"))
    monkeypatch.setenv("POD_UID", uid)
    results = outcomes(folder, RIGHT, monkeypatch)["rank-table"]
    assert results.verdict == ("passed" if message is None else "failed")
    assert (message or "rank 0 on device 0, rank 1 on device 1 of 2 ranks") in results.measured


def test_swapped_visible_devices_fail(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"ASCEND_RT_VISIBLE_DEVICES": "1,0"}
    failures = failed(folder, dataclasses.replace(RIGHT, variables=variables), monkeypatch)
    assert list(failures) == ["visible-devices"]


def test_a_full_disk_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        failures = failed(folder, RIGHT, monkeypatch)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert failures == {"output-disk": f"{folder}/output: cannot be written: File too large"}
    assert list((folder / "output").iterdir()) == []
    space = os.statvfs(folder)
    monkeypatch.setattr(node, "_OUTPUT_BYTES", space.f_blocks * space.f_frsize)
    assert list(failed(folder, RIGHT, monkeypatch)) == ["output-disk"]
