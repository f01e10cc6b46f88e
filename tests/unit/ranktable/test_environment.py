"""`python -m trainer env` reads the machine's facts and gives each problem one line, with what to do."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.documents import one_document
from trainer.cli import main
from trainer.commands.env import environment_summary, findings_of_run, worker_environment
from trainer.environment.facts import Facts, read_facts
from trainer.environment.findings import findings
from trainer.environment.parsing import (
    Chip,
    NpuProcess,
    NpuSmi,
    parse_ecc,
    parse_hccn,
    parse_npu_smi,
    parse_settings,
    parse_version,
)
from trainer.environment.versions import RELEASES, cann_of, supported_with, torch_of

DATA = Path(__file__).parents[2] / "data" / "environment"
A2 = parse_npu_smi((DATA / "npu-smi-24.1.rc3-a2.txt").read_text())
HEALTHY = NpuSmi("24.1.rc3", tuple(Chip(n, 0, "910B1", "OK", f"0000:0{n}:00.0", 3373, 65536) for n in (0, 1)), ())
RIGHT = Facts(
    packages={"pnas": "0.1.0", "torch": "2.9.0+cpu", "torch-npu": "2.9.0", "torchvision": "0.24.0"},
    python="3.11.7",
    machine="aarch64",
    cann="8.5.0",
    cann_home="/usr/local/Ascend/cann-8.5.0",
    driver="24.1.rc3",
    libraries={"libascend_hal.so": True, "libhccl.so": True},
    device_files=(0, 1),
    npu_smi=HEALTHY,
    hccn={0: "192.168.1.8", 1: "192.168.1.9"},
    shm_bytes=16 * 2**30,
    shm_free_bytes=16 * 2**30,
    open_files=65536,
    open_files_hard=65536,
    cpus=tuple(range(32)),
    machine_cpus=192,
)
NO_NPU = Facts(packages={"torch": "2.14.1"}, python="3.11.7", machine="x86_64", open_files=65536, cpus=(0, 1))


def test_a_card_with_one_chip_is_read_with_its_health_memory_and_processes() -> None:
    assert A2.version == "24.1.rc3"
    assert A2.chips == (
        Chip(0, 0, "910B1", "OK", "0000:C1:00.0", 3373, 65536, None, 0.0, 49.0, 94.6),
        Chip(1, 0, "910B1", "Warning", "0000:01:00.0", 52675, 65536, None, 12.0, 47.0, 90.1),
    )
    assert A2.processes == (NpuProcess(1, 0, 484706, "python3"),)


def test_a_card_with_two_chips_is_two_devices() -> None:
    report = parse_npu_smi((DATA / "npu-smi-25.2.0-a3.txt").read_text())
    assert report.chips == (
        Chip(0, 0, "Ascend910", "OK", "0000:9D:00.0", 61609, 65536, 0, 7.0, 43.0, 211.3),
        Chip(0, 1, "Ascend910", "OK", "0000:9F:00.0", 3412, 65536, 1, 0.0, 44.0, None),
    )


def test_a_chip_without_hbm_reports_its_other_memory() -> None:
    report = parse_npu_smi((DATA / "npu-smi-22.0.0-310p.txt").read_text())
    chip = Chip(0, 0, "310P3", "OK", "0000:86:00.0", 994, 21534, 0, 0.0, 42.0, 16.2)
    assert (report.version, report.chips) == ("22.0.2", (chip,))


def test_a_long_pci_domain_and_a_process_with_another_name_or_without_a_name_are_read() -> None:
    text = (DATA / "npu-smi-24.1.rc3-a2.txt").read_text()
    assert [chip.bus for chip in parse_npu_smi(text.replace("0000:C1:00.0", "00010000:C1:00.0")).chips] == [
        "00010000:C1:00.0",
        "0000:01:00.0",
    ]
    for name in ("", "python3 train.py"):
        report = parse_npu_smi(text.replace("| python3 ", f"| {name} "))
        assert report.processes == (NpuProcess(1, 0, 484706, name),)
        (note,) = findings(dataclasses.replace(RIGHT, npu_smi=dataclasses.replace(HEALTHY, processes=report.processes)))
        assert f"by process 484706 ({name or 'no name'})" in note.text


# Counts of other scripts, and of more digits than int() reads.
WORDS = [
    *"|+ /0:²٣",
    "910B1",
    "OK",
    "0000:C1:00.0",
    "\n",
    "| ",
    "9" * 5000,
    "HBM Single Bit Error Count :",
    "Chip ID :",
]
ROWS = ["| 0 910B1 | OK | 94.6 49 0 / 0 |\n", "| 0 | 0000:C1:00.0 | 0 0 / 0 3373 / 65536 |\n"]


@given(st.text() | st.lists(st.sampled_from([*WORDS, *ROWS])).map("".join))
def test_the_parsers_accept_any_text(text: str) -> None:
    parse_npu_smi(text)
    parse_ecc(text)
    parse_hccn(text)
    parse_version(text)
    parse_settings(text)


def test_files_of_cann_and_of_the_driver_are_read() -> None:
    assert parse_hccn((DATA / "hccn.conf").read_text()) == {0: "192.168.1.8", 1: "192.168.1.9"}
    assert (
        parse_version("package_name=Ascend-cann-toolkit\nversion=8.5.0\ninnerversion=V100R001\narch=aarch64\n")
        == "8.5.0"
    )
    assert parse_version("Version=24.1.rc1\nascendhal_version=7.35.19\n") == "24.1.rc1"
    assert parse_version("ascendhal_version=7.35.19\n") is None
    assert parse_settings("expandable_segments:True, max_split_size_mb") == {
        "expandable_segments": "True",
        "max_split_size_mb": "",
    }


def test_the_table_has_each_version_once_with_its_torch() -> None:
    versions = [version for group in RELEASES.values() for version in group]
    assert len(versions) == len(set(versions))
    assert (cann_of("2.9.0"), cann_of("2.9.0.post2"), cann_of("2.14.0")) == ("8.5.0", "9.0.0", None)
    assert (torch_of("2.9.0.post2"), torch_of("2.14.0")) == ("2.9.0", "2.14.0")
    assert supported_with("8.5.1") == ("2.9.0",)
    assert supported_with("8.3.RC1") == ()


def test_matching_versions_give_no_findings() -> None:
    assert findings(RIGHT) == []


def test_emulated_npus_need_neither_cann_nor_a_driver_and_are_reported_as_emulated() -> None:
    packages = {"torch": "2.14.1", "torch-npu": "2.9.0+emulated"}
    here = dataclasses.replace(NO_NPU, packages=packages, device_files=tuple(range(8)))
    (note,) = findings(here)
    assert (note.level, note.text.split(":")[0]) == ("note", "the NPUs are emulated")
    wrong = dataclasses.replace(here, variables={"ASCEND_RT_VISIBLE_DEVICES": "1,0"}, shm_bytes=64 * 2**20)
    assert [finding.level for finding in findings(wrong)] == ["problem", "problem", "note"]


def test_without_an_npu_nothing_about_npus_is_a_finding() -> None:
    assert findings(NO_NPU) == []


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"packages": {"torch": "2.14.1"}}, "no torch_npu: install torch-npu==2.9.0"),
    ({"packages": {}, "cann": "8.3.RC1"}, "no torch_npu: install the one for this node's CANN"),
    ({"packages": {"torch": "2.14.1", "torch-npu": "2.9.0"}}, "is for torch 2.9.0, not 2.14.1: install torch==2.9.0"),
    (
        {"packages": {"torch": "2.14.1", "torch-npu": "2.9.0"}, "machine": "x86_64"},
        "install torch==2.9.0+cpu, from download.pytorch.org/whl/cpu",
    ),
    (
        {"cann": "9.0.0"},
        "is for CANN 8.5.0, not 9.0.0: use CANN 8.5.0, or install torch-npu==2.9.0.post2 with torch==2.9.0",
    ),
    ({"cann": "8.1.RC1"}, "is for CANN 8.5.0, not 8.1.RC1: use CANN 8.5.0"),
    ({"cann": None}, "ASCEND_HOME_PATH=/usr/local/Ascend/cann-8.5.0 holds no CANN: source the set_env.sh"),
    ({"cann": None, "cann_home": None}, "no CANN: use an image of quay.io/ascend/cann"),
    (
        {"cann": None, "cann_home": None, "unsourced": "/usr/local/Ascend/cann"},
        "CANN is installed but not set up: source /usr/local/Ascend/cann/set_env.sh",
    ),
    ({"libraries": {"libhccl.so": True}}, "libascend_hal.so is in no folder of LD_LIBRARY_PATH: the driver is not in"),
    ({"libraries": {"libascend_hal.so": True}}, "libhccl.so is in no folder of LD_LIBRARY_PATH: CANN is not set up"),
    ({"npu_smi": A2}, "NPU 1 chip 0 (910B1, 0000:01:00.0) has health Warning: see npu-smi info -t health -i 1"),
    (
        {"npu_smi": None, "npu_smi_error": "dcmi module initialize failed. ret is -8005"},
        "npu-smi info fails: dcmi module initialize failed. ret is -8005: another container holds the NPUs",
    ),
    ({"npu_smi": None, "npu_smi_error": "exit code 255"}, "see whether the driver is mounted and loaded"),
    ({"device_files": ()}, "there is no /dev/davinci*: request them from Kubernetes"),
    ({"hccn": {0: "192.168.1.8"}}, "no address for NPU 1: hccn_tool"),
    ({"variables": {"ASCEND_RT_VISIBLE_DEVICES": "1,0"}}, "torch_npu sees no NPU unless the numbers ascend"),
    ({"variables": {"ASCEND_RT_VISIBLE_DEVICES": "6,7"}}, "this container has NPUs 0 to 1, by its own numbers"),
    (
        {"variables": {"ASCEND_RT_VISIBLE_DEVICES": "0-1"}},
        "the runtime reads it up to the first word that is no number",
    ),
    ({"variables": {"HCCL_CONNECT_TIMEOUT": "60"}}, "HCCL_CONNECT_TIMEOUT=60 is not within 120 to 7200 s"),
    ({"variables": {"HCCL_CONNECT_TIMEOUT": "2m"}}, "HCCL_CONNECT_TIMEOUT=2m is not a whole number of seconds"),
    ({"variables": {"HCCL_CONNECT_TIMEOUT": "3600"}}, "HCCL_EXEC_TIMEOUT=1836 is not longer than HCCL_CONNECT_TIMEOUT"),
    ({"variables": {"HCCL_EXEC_TIMEOUT": "3600"}}, "HCCL_EVENT_TIMEOUT=1868 is not longer than HCCL_EXEC_TIMEOUT=3600"),
    (
        {"variables": {"RANK_TABLE_FILE": "/user/hccl.json", "HCCL_CONNECT_TIMEOUT": "300"}, "rank_table": "missing"},
        "RANK_TABLE_FILE=/user/hccl.json: no such file",
    ),
    ({"variables": {"PYTORCH_NPU_ALLOC_CONF": "expandable_segments"}}, "expandable_segments has no value"),
    ({"shm_bytes": 64 * 2**20}, "/dev/shm has 64 MiB, too few for loader workers"),
    ({"shm_writable": False}, "/dev/shm cannot be written, so no loader process can start: mount an emptyDir"),
    ({"open_files": 63}, "63 open files are too few for a run: allow more open files (ulimit -n)"),
    ({"cpus": (0, 1, 2)}, "3 of 192 processors for 2 NPUs"),
    ({"cpu_quota": 3.5}, "3 of 192 processors for 2 NPUs"),
    ({"variables": {"OMP_NUM_THREADS": "0"}}, "OMP_NUM_THREADS=0 is not a number of threads"),
    ({"variables": {"OMP_NUM_THREADS": "33"}}, "OMP_NUM_THREADS=33, but there is room for 32 threads: "),
    ({"variables": {"OMP_NUM_THREADS": "8,2"}, "cpu_quota": 4.5}, "for 4 threads (the container's limit is 4.5 CPUs)"),
]
NOTES: list[tuple[dict[str, Any], str]] = [
    ({"packages": {"torch": "2.14.0", "torch-npu": "2.14.0"}}, "is not in this program's table"),
    ({"npu_smi": None, "npu_smi_error": "no answer within 4 s"}, "run it by hand to see the NPUs' health"),
    ({"driver": None}, "the driver's version is unknown"),
    ({"npu_smi": dataclasses.replace(HEALTHY, processes=A2.processes)}, "in use by process 484706 (python3)"),
    ({"hccn": None}, "no /etc/hccn.conf here"),
    ({"open_files": 1024}, "1024 files can be open at once"),
    ({"variables": {"ASCEND_LAUNCH_BLOCKING": "1"}}, "for debugging: unset it to train"),
    (
        {"variables": {"RANK_TABLE_FILE": "/user/hccl.json", "HCCL_CONNECT_TIMEOUT": "300"}, "rank_table": "link"},
        "is a link, which torch_npu ignores",
    ),
    ({"variables": {"RANK_TABLE_FILE": "/t"}, "rank_table": "file"}, "with a rank table torch_npu advises 300 s"),
]


def _judged(changed: dict[str, Any], level: str) -> list[str]:
    return [finding.text for finding in findings(dataclasses.replace(RIGHT, **changed)) if finding.level == level]


@pytest.mark.parametrize(("changed", "message"), WRONG, ids=[message for _, message in WRONG])
def test_each_problem_is_one_line_that_says_what_to_do(changed: dict[str, Any], message: str) -> None:
    (text,) = _judged(changed, "problem")
    assert message in text
    assert "\n" not in text


@pytest.mark.parametrize(("changed", "message"), NOTES, ids=[message for _, message in NOTES])
def test_each_note_is_one_line(changed: dict[str, Any], message: str) -> None:
    (text,) = _judged(changed, "note")
    assert message in text
    assert _judged(changed, "problem") == []


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """Return the root of a node with two NPUs, one of them unhealthy, and with a program that prints like npu-smi."""
    for name in ("davinci0", "davinci1", "davinci_manager"):
        (tmp_path / "dev").mkdir(exist_ok=True)
        (tmp_path / "dev" / name).touch()
    for path, text in (
        ("usr/local/Ascend/driver/version.info", "Version=24.1.rc3\n"),
        ("cann/aarch64-linux/ascend_toolkit_install.info", "version=8.5.0\n"),
        ("cann/aarch64-linux/ascend_ops_install.info", "version=8.4.0\n"),
        ("cann/lib64/libhccl.so", ""),
        ("etc/hccn.conf", (DATA / "hccn.conf").read_text()),
        ("bin/npu-smi", f'#!/bin/sh\n[ "$1" = info ] && cat {DATA}/npu-smi-24.1.rc3-a2.txt\n'),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "bin/npu-smi").chmod(0o755)
    return tmp_path


def environ(node: Path) -> dict[str, str]:
    return {
        "PATH": f"{node}/bin:/usr/bin:/bin",
        "ASCEND_HOME_PATH": f"{node}/cann",
        "LD_LIBRARY_PATH": f"/nowhere::{node}/cann/lib64",
        "HCCL_IF_IP": "10.0.0.5",
        "SECRET": "of another program",
    }


def test_a_node_is_read_from_its_files_and_npu_smi(node: Path) -> None:
    facts = read_facts(environ(node), node)
    assert (facts.cann, facts.driver, facts.device_files) == ("8.5.0", "24.1.rc3", (0, 1))
    assert facts.libraries == {"libascend_hal.so": False, "libhccl.so": True}
    assert facts.npu_smi == A2
    assert facts.hccn == {0: "192.168.1.8", 1: "192.168.1.9"}
    assert set(facts.variables) == {"ASCEND_HOME_PATH", "HCCL_IF_IP"}
    assert read_facts(environ(node), node, npu_smi_timeout_s=None).npu_smi is None


def test_an_npu_smi_that_fails_or_hangs_is_reported(node: Path) -> None:
    program = node / "bin/npu-smi"
    program.write_text("#!/bin/sh\necho 'dcmi module initialize failed. ret is -8005'\nexit 255\n")
    assert read_facts(environ(node), node).npu_smi_error == "dcmi module initialize failed. ret is -8005"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    assert read_facts(environ(node), node, npu_smi_timeout_s=0.2).npu_smi_error == "no answer within 0.2 s"


def test_cann_that_is_not_set_up_is_found(node: Path) -> None:
    (node / "usr/local/Ascend/ascend-toolkit").mkdir()
    (node / "usr/local/Ascend/ascend-toolkit/set_env.sh").touch()
    facts = read_facts({"PATH": "/usr/bin"}, node)
    assert (facts.cann, facts.unsourced) == (None, str(node / "usr/local/Ascend/ascend-toolkit"))


def test_a_rank_table_that_is_a_link_is_recognised(node: Path) -> None:
    (node / "link").symlink_to(node / "etc/hccn.conf")
    for name, kind in (("link", "link"), ("etc/hccn.conf", "file"), ("none", "missing")):
        assert read_facts({"RANK_TABLE_FILE": str(node / name)}, node, npu_smi_timeout_s=None).rank_table == kind


def summary(facts: Facts, *, device: str, workers: int) -> list[str]:
    return list(environment_summary(facts, findings_of_run(facts, device=device, workers=workers), device=device))


def test_a_run_on_npus_begins_with_its_versions_and_problems() -> None:
    lines = summary(dataclasses.replace(RIGHT, cann="9.0.0"), device="npu", workers=4)
    assert lines[0] == (
        "environment torch=2.9.0+cpu python=3.11.7 cpus=32 torch_npu=2.9.0 cann=9.0.0 driver=24.1.rc3 apex=none npus=2"
    )
    assert [line.split(":")[0] for line in lines[1:]] == ["environment problem"]


def test_a_run_without_npus_begins_only_with_findings_that_concern_it() -> None:
    small = dataclasses.replace(RIGHT, cann="9.0.0", shm_bytes=64 * 2**20)
    lines = summary(small, device="cpu", workers=4)
    assert lines[0] == "environment torch=2.9.0+cpu python=3.11.7 cpus=32"
    assert [line.split(", ")[0] for line in lines[1:]] == ["environment problem: /dev/shm has 64 MiB"]
    assert len(summary(small, device="cpu", workers=0)) == 1, "without loaders, /dev/shm does not matter"


@pytest.mark.parametrize(
    ("quota", "line"), [(None, "0-1 (2 of 2)"), (0.5, "0-1 (2 of 2), with a quota of 0.5 CPUs: 1 in use")]
)
def test_the_report_and_a_runs_first_line_know_the_containers_cpu_limit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, quota: float | None, line: str
) -> None:
    facts = dataclasses.replace(NO_NPU, machine_cpus=2, cpu_quota=quota)
    monkeypatch.setattr("trainer.commands.env.read_facts", lambda _: facts)
    assert main(["env"]) == 0
    assert f"  processors    {line}\n" in capsys.readouterr().out
    (first, *_) = summary(facts, device="cpu", workers=0)
    assert first.endswith(f" cpus={2 if quota is None else 1}")


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"HCCL_EXEC_TIMEOUT": "2400"},
        {"HCCL_EXEC_TIMEOUT": "544"},
        {"HCCL_EXEC_TIMEOUT": "0"},
        {"HCCL_CONNECT_TIMEOUT": "3600"},
        {"HCCL_CONNECT_TIMEOUT": "7200"},
        {"HCCL_EVENT_TIMEOUT": "4000"},
    ],
)
@pytest.mark.parametrize("table", [None, "file"])
def test_the_other_timeouts_of_hccl_adapt_to_a_single_given_one(
    variables: dict[str, str], table: str | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = dataclasses.replace(RIGHT, variables=variables, rank_table=table)
    assert findings(worker_environment(facts, 900.0)) == []
    monkeypatch.setattr("trainer.commands.env.read_facts", lambda _: facts)
    assert main(["env"]) == 0
    output = capsys.readouterr().out
    assert [line.strip() for line in output.splitlines() if "HCCL_" in line] == [
        f"{a}={b}" for a, b in variables.items()
    ]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"HCCL_CONNECT_TIMEOUT": "900", "HCCL_EXEC_TIMEOUT": "680"}, "HCCL_EXEC_TIMEOUT=680 is not longer than"),
        ({"HCCL_EXEC_TIMEOUT": "100"}, "HCCL_EXEC_TIMEOUT=100 is not longer than HCCL_CONNECT_TIMEOUT=120: raise it"),
        ({"HCCL_EVENT_TIMEOUT": "1836"}, "HCCL_EVENT_TIMEOUT=1836 is not longer than HCCL_EXEC_TIMEOUT=1836"),
        ({"HCCL_CONNECT_TIMEOUT": "20m"}, "HCCL_CONNECT_TIMEOUT=20m is not a whole number of seconds"),
    ],
)
def test_timeouts_that_no_default_can_match_are_still_problems(variables: dict[str, str], message: str) -> None:
    (problem,) = findings(worker_environment(dataclasses.replace(RIGHT, variables=variables), 900.0))
    assert message in problem.text


def test_a_run_judges_the_timeouts_that_its_workers_get(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = dataclasses.replace(RIGHT, variables={"HCCL_EXEC_TIMEOUT": "2400"})
    monkeypatch.setattr("trainer.cli.read_facts", lambda _, *, npu_smi_timeout_s: facts)
    assert main(["--device", "npu", "--npus", "99", "--data-path", str(tmp_path)]) == 2
    assert len(capfd.readouterr().out.splitlines()) == 1, "versions, and no problem"


def test_the_trainer_prints_its_environment_before_anything_can_fail(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(_: object, *, npu_smi_timeout_s: float | None) -> Facts:
        assert npu_smi_timeout_s is None, "npu-smi would delay the start of a run by a second"
        return dataclasses.replace(RIGHT, device_files=())

    monkeypatch.setattr("trainer.cli.read_facts", read)
    assert main(["--device", "npu", "--npus", "1", "--data-path", str(tmp_path)]) == 2
    output = capfd.readouterr()
    assert output.out.startswith("environment torch=2.9.0+cpu python=3.11.7 ")
    assert output.err.startswith("error: --npus asks for 1 npu devices")


def test_the_report_of_a_machine_without_npus_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.commands.env.read_facts", lambda _: NO_NPU)
    assert main(["env"]) == 0
    output = capsys.readouterr().out
    assert "\n  no NPU: no /dev/davinci* here, and no npu-smi that shows one\n" in output
    assert output.endswith("\neverything fits together\n")


def test_the_report_shows_the_facts_and_ends_with_the_findings(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unhealthy = dataclasses.replace(RIGHT, npu_smi=A2, variables={"HCCL_IF_IP": "10.0.0.5"})
    monkeypatch.setattr("trainer.commands.env.read_facts", lambda _: unhealthy)
    assert main(["env"]) == 1
    lines = capsys.readouterr().out.splitlines()
    for line in (
        "  CANN          8.5.0",
        "  apex          none",
        "  /dev/davinci  0-1",
        "  NPU 1 chip 0  910B1 at 0000:01:00.0: Warning, 52675 of 65536 MiB in use",
        "  NPU 0 has the RoCE address 192.168.1.8",
        "  HCCL_IF_IP=10.0.0.5",
        "  /dev/shm      16.0 GiB, 16.0 GiB free",
        "  processors    0-31 (32 of 192)",
    ):
        assert line in lines
    assert [line.split(":")[0] for line in lines[-3:]] == ["", "problem", "note"]


def test_the_document_holds_facts_and_findings(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.commands.env.read_facts", lambda _: dataclasses.replace(RIGHT, npu_smi=A2))
    assert main(["env", "--json"]) == 1
    document = one_document(capsys.readouterr().out, "Environment")
    assert document["npuSmi"]["chips"][1]["health"] == "Warning"
    assert [finding["level"] for finding in document["findings"]] == ["problem", "note"]


def test_the_real_report_needs_no_torch() -> None:
    program = (
        "import sys, trainer.cli as t; t.main(['env']); "
        "print([n for n in ('torch', 'torch_npu', 'numpy') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "/dev/shm" in done.stdout
