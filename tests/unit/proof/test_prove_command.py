"""`python -m trainer prove`: its lines, its report, its exit codes, and one clear line for bad input."""

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import psutil
import pytest

from tests.documents import one_document
from tests.unit.proof import small_checks
from trainer.cli import main
from trainer.proof import catalogue
from trainer.proof.check import CheckFunction, ProofCheck

REPOSITORY = Path(__file__).parents[3]


def _check(function: CheckFunction, *, opens: bool = False) -> ProofCheck:
    name = function.__name__
    return ProofCheck(
        name, "a small check", "device", f"{small_checks.__name__}:{name}", 60.0, kinds=("cpu", "npu"), opens=opens
    )


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder for the report; the checks are two that pass, and one for each fault."""
    checks = (_check(small_checks.passes, opens=True), _check(small_checks.writes_a_file))
    faults = (_check(small_checks.fails), _check(small_checks.dies), _check(small_checks.hangs))
    monkeypatch.setattr(catalogue, "CHECKS", (*checks, *faults))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    return tmp_path / "output"


def test_each_result_is_a_line_and_the_report_a_document(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["prove", "--device", "cpu", "--npus", "1", "--output", str(output)]
    assert main([*words, "--only", "writes_a_file"]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[:3] for line in out.splitlines()] == [
        ["passed", "passes", "cpu:0"],
        ["passed", "writes_a_file", "cpu:0"],
    ]
    assert err == f"the report is in {output}/proof.html and {output}/proof.json\n"
    report = one_document((output / "proof.json").read_text(), "Proof")
    assert report["notRun"] == []
    assert main([*words, "--only", "writes_a_file", "--json"]) == 0
    printed = one_document(capsys.readouterr().out, "Proof")
    assert [result["outcome"] for result in printed["results"]] == [result["outcome"] for result in report["results"]]


def test_a_failed_check_is_exit_code_1_and_its_line_is_safe(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prove", "--device", "cpu", "--npus", "1", "--output", str(output), "--only", "fails", "dies"]) == 1
    out, err = capsys.readouterr()
    lines = out.splitlines()
    failed = ["failed", "fails", "cpu:0", "1 + 1 = 3 (expected: 2, by arithmetic): replace the device"]
    assert lines[1].split(maxsplit=3) == failed
    assert r"hccp: lost \x1b[31mthe link (expected: the process lives): run this check again; " in lines[2]
    assert err.splitlines()[1] == (
        "error: 2 of 3 checks have not passed (dies cpu:0, fails cpu:0): their lines say what to do"
    )


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--device", "cpu", "--only", "pases"], "--only pases: no such check; did you mean passes?"),
        (
            ["--device", "cpu", "--only", "q"],
            "--only q: no such check; there are dies, fails, hangs, passes, writes_a_file",
        ),
        (
            ["--device", "cpu", "--only", "fails,"],
            "--only '': no such check; there are dies, fails, hangs, passes, writes_a_file",
        ),
        (["--device", "cpu", "--only", "hangs, pases"], "--only pases: no such check; did you mean passes?"),
        (["--device", "cuda", "--only", "fails"], "--only fails: this check is for cpu and npu, not for cuda"),
        (["--device", "npu"], "there is no npu device here (*): request some from Kubernetes, or use --device cpu"),
        ([], "CANN is here, but no NPU (/dev/davinci*): request NPUs, or use --device cpu"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], error: str, output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (output / "dev").mkdir(parents=True)
    (output / "cann/aarch64-linux").mkdir(parents=True)
    (output / "cann/aarch64-linux/ascend_toolkit_install.info").write_text("version=8.5.0\n")
    monkeypatch.setenv("PNAS_DEVICE_FILES", str(output / "dev"))
    monkeypatch.setenv("ASCEND_HOME_PATH", str(output / "cann"))
    assert main(["prove", "--output", str(output), *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line == f"error: {error.replace('(*)', f'({output}/dev/davinci*)')}"


def test_more_devices_than_there_are_is_one_line(
    output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output.mkdir()
    (output / "davinci0").touch()
    monkeypatch.setenv("PNAS_DEVICE_FILES", str(output))
    assert main(["prove", "--device", "npu", "--npus", "8"]) == 2
    assert capsys.readouterr().err == f"error: --npus 8: there are 1 ({output}/davinci*): ask for fewer\n"


def test_a_device_that_does_not_open_is_not_tuned(
    output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "CHECKS", (_check(small_checks.fails, opens=True),))
    assert main(["prove", "--device", "cpu", "--npus", "1", "--output", str(output), "--tune"]) == 1
    assert "no tuning: first see to cpu:0" in capsys.readouterr().err.splitlines()
    report = one_document((output / "proof.json").read_text(), "Proof")
    assert "tune-defaults" in report["notRun"]
    assert not (output / "tuned.yaml").exists()


def test_where_no_report_can_be_written_the_lines_remain(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output.write_text("a file")
    assert main(["prove", "--device", "cpu", "--npus", "1", "--output", str(output), "--only", "writes_a_file"]) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    (line,) = err.splitlines()
    assert line.startswith(f"error: the report is not complete: {output}/proof.json: cannot be written: ")


def test_without_room_for_the_record_the_report_and_its_page_remain(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output.mkdir()
    (output / ".proofs").write_text("a file")
    assert main(["prove", "--device", "cpu", "--npus", "1", "--output", str(output), "--only", "writes_a_file"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: the report is not complete: {output}/.proofs: cannot be written: ")
    assert {"proof.json", "proof.html"} <= {path.name for path in output.iterdir()}


def test_the_report_goes_to_the_folder_of_runs(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PNAS_OUTPUT", str(output))
    assert main(["prove", "--device", "cpu", "--npus", "1", "--only", "writes_a_file"]) == 0
    assert (output / "proof.json").exists()


def _main_printing_to(stdout: TextIO, words: Sequence[str]) -> int:
    """Return the exit code of a command whose standard output is a file that takes nothing, also at its end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        code = main(words)
    with contextlib.suppress(OSError):
        stdout.close()
    return code


def test_a_document_that_cannot_be_printed_is_still_a_file(output: Path) -> None:
    words = ["prove", "--device", "cpu", "--npus", "1", "--output", str(output), "--only", "writes_a_file", "--json"]
    assert _main_printing_to(os.fdopen(os.open("/dev/full", os.O_WRONLY), "w"), words) == 1
    one_document((output / "proof.json").read_text(), "Proof")


def test_a_closed_pipe_ends_the_checks_and_keeps_the_report(output: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = ["prove", "--device", "cpu", "--npus", "1", "--output", str(output), "--only", "hangs"]
    assert _main_printing_to(os.fdopen(writer, "w"), words) == 141
    report = one_document((output / "proof.json").read_text(), "Proof")
    assert (report["stopped"], [result["check"] for result in report["results"]]) == ("SIGTERM", ["passes", "hangs"])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)])
def test_a_signal_leaves_the_report_of_what_was_done(
    number: signal.Signals,
    code: int,
    output: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(catalogue, "CHECKS", (*catalogue.CHECKS[:2], catalogue.CHECKS[-1], catalogue.CHECKS[2]))
    done = threading.Event()
    threading.Thread(target=_signal_when_hanging, args=(number, done), daemon=True).start()
    assert main(["prove", "--device", "cpu", "--npus", "1", "--output", str(output)]) == code
    done.set()
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["passed", "passed", "unfinished"]
    name = "SIGINT" if number == signal.SIGINT else "SIGTERM"
    assert f"stopped by {name}; not run: fails" in err.splitlines()
    report = json.loads((output / "proof.json").read_text())
    assert (report["stopped"], report["notRun"], len(report["results"])) == (name, ["fails"], 3)


def _signal_when_hanging(number: int, done: threading.Event) -> None:
    """Signal this process as soon as the check that hangs has started its child."""
    while not done.wait(0.05):
        with contextlib.suppress(psutil.Error):  # a process that has just ended
            commands = [process.cmdline() for process in psutil.Process().children(recursive=True)]
            if any(small_checks.FOR_EVER in command for command in commands):
                os.kill(os.getpid(), number)
                return


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        ([], 6, "--run-name job: {output}/job has a run: choose another name"),
        (["--run-name", "new", "--checks", "pases"], 2, "--checks pases: no such check; did you mean passes?"),
        (
            ["--nodes", "2", "--master-addr", "127.0.0.1", "--run-name", "none"],
            2,
            "--run-name is needed for several nodes, which find each other by it",
        ),
    ],
)
def test_a_job_with_bad_input_starts_no_check(
    words: list[str], code: int, error: str, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (output / "job").mkdir(parents=True)
    (output / "job/config.yaml").touch()
    given = {"--run-name": "job"} | dict(zip(words[::2], words[1::2], strict=True))
    options = [word for pair in given.items() for word in pair]
    assert main(["--mode", "prove", "--device", "cpu", "--output", str(output), *options]) == code
    assert capsys.readouterr().err == f"error: {error.format(output=output)}\n"
    assert [path.name for path in output.iterdir()] == ["job"]
