"""`doctor` for this machine: what a local job lacks, and what only the trainer can tell."""

import errno
import os
import re
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import RequestError
from launcher.jobs import PreflightFinding
from launcher.local.jobs import LocalJobs
from launcher.local.preflight import check_paths, examine_machine
from launcher.local.submitter import LocalSubmitter
from launcher.settings.layers import resolve_settings
from launcher.settings.spec import JobSpec
from trainer.shared.runs import PACK_INDEX

NOW = datetime(2026, 11, 30, tzinfo=timezone.utc)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the root of a machine with two NPUs, and data in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in ("data/train/a", "data/train/b", "data/val/a", "root/dev/shm", "output/taken"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("root/dev/davinci0", "root/dev/davinci1", "root/dev/davinci_manager", "file"):
        (tmp_path / name).touch()
    return tmp_path / "root"


def job(**flags: Any) -> JobSpec:
    """Return a local job as submit builds it."""
    settings = resolve_settings({"backend": "local", "data_path": Path("data"), **flags}, None, {})
    return LocalSubmitter(LocalJobs()).build(settings, now=NOW)


def found(spec: JobSpec, root: Path) -> dict[str, PreflightFinding]:
    return {finding.about: finding for finding in examine_machine(spec, root)}


@pytest.mark.parametrize(
    ("flags", "about", "text"),
    [
        ({"data_path": Path("nowhere")}, "data", "no such folder; give the folder that holds train/ and val/"),
        ({"data_path": Path("file")}, "data", "not a folder"),
        ({"data_path": Path("output")}, "data", "there is no train/ and no val/ in it"),
        ({"output": Path("file")}, "output", "file is a file; choose another folder"),
        ({"name": "taken"}, "output", "holds an earlier run"),
        ({"mode": "eval", "weights": Path("none.pt")}, "weights", "none.pt: no such file"),
        ({"rank_table": Path("none.json")}, "rank table", "none.json: no such file"),
        ({"nodes": 2, "node_rank": 0, "master_addr": "a"}, "nodes", "the local backend has this machine only"),
        ({"device": "npu", "npus": 8}, "devices", "--npus 8: this machine has 2 (/dev/davinci*); ask for 2 or fewer"),
    ],
)
def test_each_fault_of_this_machine_is_found(machine: Path, flags: Any, about: str, text: str) -> None:
    findings = found(job(**flags), machine)
    assert [name for name, finding in findings.items() if finding.state == "missing"] == [about]
    assert text in findings[about].text


@pytest.mark.parametrize(
    ("flags", "about", "option"),
    [
        *(({"data_path": path}, "data", "--data-path") for path in (Path("n" * 300), Path("closed/data"))),
        *(({"output": path}, "output", "--output") for path in (Path("n" * 300), Path("closed/output"))),
        *(({"mode": "eval", "weights": path}, "weights", "--weights") for path in (Path("n" * 300), Path("closed/w"))),
    ],
)
def test_a_path_that_the_system_refuses_is_named_by_its_option(
    machine: Path, monkeypatch: pytest.MonkeyPatch, flags: Any, about: str, option: str
) -> None:
    status = Path.stat

    def refuse(path: Path, **options: Any) -> os.stat_result:
        """Refuse as for a user without rights; root has all rights."""
        if "closed" in path.parts[:-1]:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return status(path, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    findings = found(job(**flags), machine)
    assert [name for name, finding in findings.items() if finding.state == "missing"] == [about]
    assert re.match(rf"{option} .*: (File name too long|Permission denied); choose another path", findings[about].text)
    with pytest.raises(RequestError, match=f"^{option} "):
        check_paths(job(**flags))


def test_packed_images_need_no_folders(machine: Path) -> None:
    Path("pack").mkdir()
    Path("pack", PACK_INDEX).touch()
    finding = found(job(data_path=Path("pack")), machine)["data"]
    assert (finding.state, finding.text) == ("ok", f"{Path('pack').absolute()}: packed images")


def test_a_folder_that_the_user_cannot_list_is_no_data(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    with monkeypatch.context() as context:
        context.setattr(Path, "iterdir", refuse)
        finding = found(job(), machine)["data"]
    assert re.fullmatch("--data-path .*/data: .*/train: Permission denied; choose another path", finding.text)


def test_a_ready_machine_shows_its_sizes_and_what_is_not_checked(machine: Path) -> None:
    findings = found(job(), machine)
    assert {name: finding.state for name, finding in findings.items()} == {
        **dict.fromkeys(("machine", "torch", "torchvision", "nodes", "data", "output"), "ok"),
        **dict.fromkeys(("devices", "images"), "unknown"),
    }
    assert "train/ with 2 classes, val/ with 1 classes" in findings["data"].text
    assert " processors, " in findings["machine"].text
    assert all(finding.text.startswith("not checked: ") for finding in findings.values() if finding.state == "unknown")
    for path in machine.glob("dev/davinci*"):
        path.unlink()
    assert "--device npu: this machine has no NPU" in found(job(device="npu"), machine)["devices"].text
    assert found(job(), machine)["devices"].state == "unknown", "torch can find a GPU"
    assert found(job(device="cpu"), machine)["devices"].state == "ok"


def test_a_machine_without_a_server_is_not_asked_as_one(machine: Path) -> None:
    assert machine.is_dir()
    with pytest.raises(RequestError, match="--dry-run server: a job on this machine has no server to ask"):
        LocalSubmitter(LocalJobs()).check(job(), ask_server=True)
    assert LocalSubmitter(LocalJobs()).check(job(), ask_server=False) == ("its settings are valid", [])
