"""A bundle has all that tells of a fault, where ascend-fd looks for it, and nothing that is secret."""

import json
import random
import re
import socket
import tarfile
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.errors import ConflictError
from launcher.local import records
from launcher.results.bundle import node_of_ranks, open_bundle
from tests.documents import one_document
from tests.run_folders import ATTEMPTS, write_run
from tests.unit.launcher.test_redaction import LINES as FIRST_LINES
from tests.unit.launcher.test_redaction import LINES_OF_TOOLS
from trainer.shared.redaction import Redactor

SEED = 21
LINES = (*FIRST_LINES, *LINES_OF_TOOLS)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run of a local job that has failed in its second attempt, with CANN's logs of eight ranks on two nodes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    output = write_run(tmp_path / "output" / "r1", attempts=ATTEMPTS)
    for rank in range(8):
        for attempt in (1, 2):
            (output / str(rank)).mkdir(exist_ok=True)
            (output / str(rank) / f"console-{attempt}.log").write_text(
                f"[rank {rank} npu:{rank} #1] attempt {attempt}\n"
            )
            logs = output / f"evidence/attempt-{attempt}/node-{rank // 4}/process_log/rank-{rank}/debug/plog"
            logs.mkdir(parents=True)
            (logs / f"plog-{rank}_2026.log").write_text(f"[ERROR] HCCL({rank},python)\n")
    (output / "evidence/attempt-2/node-0/ends.json").write_text("{}\n")
    (output / "evidence/attempt-2/node-0/environment.json").write_text('{"variables": {"HCCL_TOKEN": "s3cret"}}')
    (output / "evidence/attempt-2/node-0/memory_7.pickle").write_bytes(b"\x80\x04")
    (output / "evidence/attempt-2/node-0/core").write_bytes(b"\x7fELF\0\0")
    (output / "checkpoints").mkdir()
    (output / "checkpoints" / "best.safetensors").write_bytes(b"weights")
    (output / "profiles").mkdir()
    (output / "profiles" / "trace.json").write_text("[]")
    folder = records.state_home({"XDG_STATE_HOME": str(tmp_path / "state")}) / "r1"
    folder.mkdir(parents=True)
    spec = {"train": {"mode": "full", "nodes": 2}, "backend": "local"}
    record = {"name": "r1", "command": ["x"], "cwd": str(tmp_path), "output": str(output), "created": 1.0, "spec": spec}
    records.write_record(folder / records.JOB, "LocalJob", {**record, "host": socket.gethostname()})
    records.write_record(folder / records.EXIT, "exit", {"returncode": 1, "ended": 2.0})
    (folder / records.CONSOLE).write_text("[rank 0 npu:0 #1] attempt 2\nerror: no more memory\n")
    return output


def unpack(path: Path) -> dict[str, bytes]:
    """Return the files of an archive by their paths in it."""
    with tarfile.open(path) as archive:
        files = {entry.name: archive.extractfile(entry) for entry in archive.getmembers()}
        return {name: file.read() for name, file in files.items() if file is not None}


def test_a_bundle_has_a_folder_for_ascend_fd_for_each_node_and_attempt(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bundle", "r1", "--json"]) == 0
    document = one_document(capsys.readouterr().out, "Bundle")
    assert document["leftOut"] == ["evidence/attempt-2/node-0/core: it is not text, so its secrets cannot be found"]
    files = unpack(Path("bundle-r1.tar.gz"))
    assert {name.removeprefix("bundle-r1/") for name in files} == {*document["files"]}
    for attempt in (1, 2):
        for node in (0, 1):
            folder, ranks = f"bundle-r1/attempt-{attempt}/node-{node}", range(4 * node, 4 * node + 4)
            own = {
                name.removeprefix(f"{folder}/"): data for name, data in files.items() if name.startswith(f"{folder}/")
            }
            own.pop("ends.json", None)
            environment = own.pop("environment.json", None)
            assert environment is None or json.loads(environment) == {"variables": {"HCCL_TOKEN": "(hidden)"}}
            plog = "process_log/rank-{rank}/debug/plog/plog-{rank}_2026.log"
            assert own == {
                **{f"rank-{rank}.txt": f"[rank {rank} npu:{rank} #1] attempt {attempt}\n".encode() for rank in ranks},
                **{plog.format(rank=rank): f"[ERROR] HCCL({rank},python)\n".encode() for rank in ranks},
            }
    others = {name.removeprefix("bundle-r1/") for name in files if not name.startswith("bundle-r1/attempt-")}
    assert others == {
        *("README.txt", "status.json", "events.txt", "explanation.txt", "console.log"),
        *("cluster/job.json", "cluster/exit.json", "run/attempt.json", "run/attempt-2.json"),
        *("run/config.yaml", "run/provenance.json", "run/metrics.jsonl"),
    }
    assert files["bundle-r1/run/metrics.jsonl"] == (run / "metrics.jsonl").read_bytes()
    assert b"no more memory" in files["bundle-r1/console.log"]


def test_no_planted_secret_is_in_a_bundle(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(SEED)
    secrets = [f"{chance.getrandbits(100):x}7{chance.getrandbits(80):X}z" for _ in LINES]
    lines = [line.replace("%s", secret) for line, secret in zip(LINES, secrets, strict=True) if "%s" in line]
    monkeypatch.setenv("MY_TOKEN", "my-own-login-to-it")
    text = "\n".join([*lines, "it is my-own-login-to-it"]) + "\n"
    for path in (run / "3" / "console-2.log", run / "evidence/attempt-1/node-0/process_log/rank-0/debug/plog/x.log"):
        path.write_text(text)
    (run / "config.yaml").write_text(text)
    (run / "names").mkdir()
    for number, name in enumerate(line for line in lines if "/" not in line):
        (run / "names" / name).write_text("text" if number % 2 else "no text: \0")
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps({"kind": "note", "text": line}) + "\n" for line in lines)
    provenance = json.loads((run / "provenance.json").read_text())
    (run / "provenance.json").write_text(json.dumps({**provenance, "command": text.split("\n"), "note": lines}))
    folder = records.state_home({"XDG_STATE_HOME": str(tmp_path / "state")}) / "r1"
    (folder / records.CONSOLE).write_text(text)
    record = json.loads((folder / records.JOB).read_text())
    (folder / records.JOB).write_text(json.dumps({**record, "command": lines, "spec": {"overlay": {"x": lines}}}))
    assert main(["bundle", "r1"]) == 0
    files = unpack(Path("bundle-r1.tar.gz"))
    found = [
        (name, line)
        for name, data in files.items()
        for line, secret in zip(LINES, secrets, strict=True)
        if secret.encode() in data or secret in name or b"my-own-login" in data
    ]
    assert found == []


def test_a_job_whose_folder_is_gone_has_a_bundle(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run.rename(run.with_name("moved"))
    assert main(["bundle", "r1", "--to", "b.tar.gz"]) == 0
    captured = capsys.readouterr()
    assert re.fullmatch(r"b\.tar\.gz: \d files, 0 secrets hidden\n", captured.out)
    assert captured.err == (
        "warning: not in the bundle: job r1: its output folder is not on this machine: it was not made, or is removed\n"
    )


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["none"], 4, "there is no job `none` on this machine; see `python -m launcher list`"),
        (["r1", "--to", "mine"], 6, "mine exists: choose another place by --to"),
        (
            ["r1", "--to", "no/b"],
            74,
            "no/b: cannot be written: No such file or directory; choose another place by --to",
        ),
    ],
)
def test_a_bundle_that_cannot_be_written_is_one_line(
    run: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, error: str
) -> None:
    Path("mine").write_text("mine")
    assert main(["bundle", *words]) == code
    assert capsys.readouterr() == ("", f"error: {error}\n")
    assert Path("mine").read_text() == "mine"


def test_the_node_of_each_rank() -> None:
    assert [node_of_ranks({"world_size": 8}, 2)(rank) for rank in range(8)] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert [node_of_ranks({}, 1)(rank) for rank in range(3)] == [0, 0, 0]
    assert node_of_ranks({"world_size": 2}, 4)(9) == 3


def test_the_name_of_a_job_in_the_readme_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    with open_bundle(tmp_path / "b.tar.gz", "red\x1b[31m", Redactor()):
        pass
    (readme,) = unpack(tmp_path / "b.tar.gz").values()
    assert readme.startswith(rb"What is known of job red\x1b[31m. Secrets")


def test_two_bundles_at_one_place_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "b.tar.gz"

    def write_both() -> None:
        with open_bundle(path, "slow", Redactor()) as slow:
            slow.add_text("a", "of the slow one\n")
            with open_bundle(path, "fast", Redactor()) as fast:
                fast.add_text("a", "of the fast one\n")

    with pytest.raises(ConflictError, match=r"b\.tar\.gz exists: choose another place by --to$"):
        write_both()
    assert unpack(path)["bundle-fast/a"] == b"of the fast one\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["b.tar.gz"]
