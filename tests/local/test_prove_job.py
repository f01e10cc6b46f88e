"""`--mode prove` as a job on this machine: its lines are complete, and a failed check ends it without a retry."""

import json
import resource
import subprocess
import sys
from pathlib import Path

from tests.documents import one_document
from tests.local.test_launcher_submit import REPOSITORY, environ
from trainer.topology.ports import free_port

__all__ = ["environ"]

JOB = ("submit", "--backend", "local", "--mode", "prove", "--npus", "2", "--device", "cpu")


def _submit(
    environ: dict[str, str], *words: str, name: str = "proof", open_files: int | None = None
) -> "subprocess.CompletedProcess[str]":
    def limit() -> None:
        if open_files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

    return subprocess.run(
        [sys.executable, "-m", "launcher", *JOB, "--name", name, *words],
        cwd=REPOSITORY,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit,
    )


def test_a_job_without_data_checks_its_devices_and_all_of_them_together(
    environ: dict[str, str], tmp_path: Path
) -> None:
    done = _submit(environ, "--output", str(tmp_path / "out"), "--checks", "versions,all-reduce")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split()[2:5] for line in done.stdout.splitlines() if line.startswith("[node 0] passed ")]
    assert [lines[0], *sorted(lines[1:3]), lines[3][:2]] == [
        ["passed", "versions", "node"],
        ["passed", "open", "cpu:0"],
        ["passed", "open", "cpu:1"],
        ["passed", "all-reduce"],
    ]
    assert "not complete" not in done.stderr
    assert "proof.html among its files" in done.stdout
    report = one_document((tmp_path / "out/proof/proof.json").read_text(), "Proof")
    assert [result["outcome"]["verdict"] for result in report["results"]] == ["passed"] * 4
    (record,) = (tmp_path / "out/.proofs").glob("*/*.json")
    assert json.loads(record.read_text())["checks"]["all-reduce"]["verdict"] == "passed"


def test_a_failed_check_is_the_cause_of_the_job(environ: dict[str, str], tmp_path: Path) -> None:
    done = _submit(environ, "--output", str(tmp_path), "--checks", "open-files", open_files=300)
    assert done.returncode == 1
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert error.startswith("error: job proof failed: open-files node 300 files can be open at once; ")
    misspelt = _submit(environ, "--output", str(tmp_path), "--checks", "open, opne-files", name="other")
    assert "--checks opne-files: no such check; did you mean open-files?" in misspelt.stderr


def test_two_nodes_have_one_report(environ: dict[str, str], tmp_path: Path) -> None:
    port = str(free_port())
    job = ("--mode", "prove", "--device", "cpu", "--npus", "1", "--nodes", "2", "--run-name", "proof")
    meeting = ("--master-addr", "127.0.0.1", "--master-port", port, "--output", str(tmp_path))
    command = (sys.executable, "-m", "trainer", *job, *meeting, "--checks", "shared-memory,all-reduce")
    processes = [
        subprocess.Popen(
            (*command, "--node-rank", node), env=environ, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
        )
        for node in ("0", "1")
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    report = one_document((tmp_path / "proof/proof.json").read_text(), "Proof")
    assert sorted((result["check"], result["place"], result["outcome"]["verdict"]) for result in report["results"]) == [
        ("all-reduce", "node0/cpu:0", "passed"),
        ("all-reduce", "node1/cpu:0", "passed"),
        ("open", "node0/cpu:0", "passed"),
        ("open", "node1/cpu:0", "passed"),
        ("shared-memory", "node0", "passed"),
        ("shared-memory", "node1", "passed"),
    ]
    assert "the report is in" in outputs[0]
    assert "the report is in" not in outputs[1]
