"""With --json every command prints documents that have a schema, errors too, and ends with the same code."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from launcher.cli import app
from launcher.exits import run_command
from launcher.jobs import JobRef, JobState, Phase, Submitted
from launcher.local import records
from launcher.local.submitter import LocalSubmitter
from launcher.output.lines import parse_lines
from launcher.output.progress import JobProgress
from launcher.output.report import live_document
from tests.documents import documents, one_document

LINES = """\
not a line of the trainer
[rank 0 cpu:0 #1] step epoch=0 epochs=2 step=3 steps=9 loss=nan lr=0.1 fps=30.5
[rank 0 cpu:0 #3] eval epoch=0 epochs=2 loss=0.5 top1=97.8 top5=100 images=360
[rank 0 cpu:0 #4] result mode=full loss=0.5 top1=97.8 top5=100 images=360 train_s=0 wall_s=2.5 output=/out/done
[node 0 #1] attempt n=2 host=vm nodes=1 started=2026-11-30T11:39:21Z from=checkpoints/step-000000040 gap_s=3
"""
WEIGHTS = {"mode": "eval", "model": "pnasnet5large", "weights": "/w.safetensors", "image_size": 331}


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Record two ended jobs on a machine without a kubeconfig."""
    for name in [name for name in os.environ if name.startswith("PNAS_") or name == "KUBECONFIG"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    train = {"mode": "full", "model": "pnasnet5tiny", "npus": 2, "nodes": 1, "weights": None}
    for created, (name, code, values) in enumerate((("bad", 1, WEIGHTS), ("done", 0, train))):
        folder = tmp_path / "pnas" / "jobs" / name
        folder.mkdir(parents=True)
        job = {"name": name, "command": ["x"], "cwd": "/", "spec": {"train": values}, "output": str(tmp_path / name)}
        record = {**job, "created": float(created), "host": socket.gethostname()}
        records.write_record(folder / records.JOB, "LocalJob", record)
        records.write_record(folder / records.EXIT, "Exit", {"returncode": code, "started": 1.0, "ended": 2.0})
        (folder / records.CONSOLE).write_text(LINES if code == 0 else "error: out of memory\n")
    for split in ("train", "val"):
        (tmp_path / "data" / split / "zero").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)


def launch(*words: str) -> int:
    """Run a command; return its exit code."""
    return run_command(lambda: app(words, exit_on_error=False, print_error=False), as_json="--json" in words)


@pytest.mark.parametrize(
    ("words", "code", "kinds"),
    [
        (["list"], 0, ["JobList"]),
        (["top"], 0, ["LiveJobList"]),
        (["top", "nix"], 4, ["Error"]),
        (["status"], 0, ["Job"]),
        (["status", "bad"], 0, ["Job"]),
        (["status", "--history"], 0, ["JobHistory"]),
        (["status", "bad", "--history"], 0, ["JobHistory"]),
        (["explain"], 0, ["Explanation"]),
        (["explain", "bad"], 0, ["Explanation"]),
        (["explain", "nix"], 4, ["Error"]),
        (["wait", "done"], 0, ["Job"]),
        (["wait", "bad"], 1, ["Job"]),
        (["logs"], 0, ["LogLine", "LogLine", "LogGap", "LogLine", "LogLine", "LogLine"]),
        (["logs", "done", "--follow", "--tail", "1"], 0, ["LogLine", "Job"]),
        (["logs", "bad", "--follow"], 1, ["LogLine", "Job"]),
        (["logs", "done", "--raw"], 2, ["Error"]),
        (["cancel", "done"], 0, ["Job"]),
        (["delete", "done"], 0, ["JobDeleted"]),
        (["delete", "done", "--forced"], 2, ["Error"]),
        (["config", "show", "--backend", "local"], 0, ["Config"]),
        (["config", "show", "--lr", "fast"], 2, ["Error"]),
        (["submit", "--backend", "local", "--data-path", "data", "--dry-run", "client"], 0, ["SubmitCheck"]),
        (["submit", "--backend", "local", "--data-path", "nowhere"], 2, ["Error"]),
        (["doctor", "--backend", "local", "--data-path", "nowhere"], 5, ["FindingList"]),
        (["render", "--backend", "local"], 2, ["Error"]),
        (["status", "nix"], 4, ["Error"]),
        (["logs", "nix"], 4, ["Error"]),
        (["statuss"], 2, ["Error"]),
        (["list", "--backend", "batch"], 3, ["Error"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_each_command_prints_documents_of_its_kinds(
    capsys: pytest.CaptureFixture[str], *, words: list[str], code: int, kinds: list[str]
) -> None:
    assert launch(*words, "--json") == code
    out, err = capsys.readouterr()
    printed = documents(out)
    assert [document["kind"] for document in printed] == kinds
    if kinds == ["Error"]:
        assert printed[0]["code"] == code
        assert f"error: {printed[0]['message']}" in err
    assert err.count("error: ") == (code != 0)


def test_submit_prints_the_submission_the_log_and_the_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    submission = Submitted(JobRef("local", "done"), ["a note"])
    monkeypatch.setattr(LocalSubmitter, "submit", lambda _self, _spec: submission)
    command = ("submit", "--backend", "local", "--data-path", "data", "--name", "done", "--json")
    assert launch(*command) == 0
    first, *lines, job = documents(capsys.readouterr().out)
    assert (first["kind"], first["name"], first["existed"], first["notes"]) == ("Submission", "done", False, ["a note"])
    assert {line["kind"] for line in lines} == {"LogLine", "LogGap"}
    assert (job["kind"], job["status"]["result"]["top1"]) == ("Job", 97.8)
    assert launch(*command, "--detach") == 0
    assert one_document(capsys.readouterr().out, "Submission") == first


def test_a_list_has_what_the_table_has_and_not_the_whole_spec(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("list", "--json") == 0
    out = capsys.readouterr().out
    bad, done = one_document(out, "JobList")["items"]
    assert (done["model"], done["npus"], done["status"]["phase"]) == ("pnasnet5tiny", 2, "Succeeded")
    assert (done["status"]["step"]["loss"], done["status"]["result"]["fps"]) == ("nan", None)
    assert (bad["mode"], bad["model"]) == ("eval", None), "the weights say which model it is"
    assert len(out.splitlines()) < 2 * 65


def test_the_live_jobs_have_the_figures_of_each_device() -> None:
    log = (
        b'[rank 0 npu:0 #1] progress done=12 left_s=60 left_low_s=50 left_high_s=80 rates="45.2 91 nan" '
        b'waits="data peers" use_percent="93 - 1e999" memory_percent=61 temperature_c="71 x" power_w="251 98"\n'
    )
    states = [JobState(JobRef("batch", name), Phase.RUNNING) for name in ("with", "without")]
    shown = [(states[0], JobProgress().update_all(parse_lines(log))), (states[1], JobProgress())]
    document = one_document(json.dumps(live_document(shown, "no right")), "LiveJobList")
    names = ("waits", "imagesPerS", "usePercent", "memoryPercent", "temperatureC", "powerW")
    assert [[device[name] for name in names] for device in document["items"][0]["devices"]] == [
        ["data", 45.2, 93, 61, 71, 251],
        ["peers", 91, None, None, None, 98],
        [None, None, None, None, None, None],
    ]
    assert document["items"][0]["status"]["progress"]["left_s"] == 60
    assert (document["items"][1]["devices"], document["problem"]) == ([], "no right")


def test_settings_that_come_with_the_weights_are_not_said_to_be_the_defaults(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert launch("status", "bad", "--json") == 0
    assert one_document(capsys.readouterr().out, "Job")["spec"]["train"] == {
        "mode": "eval",
        "weights": "/w.safetensors",
    }
    assert launch("status", "bad") == 0
    assert "eval, the weights' model at their image size, " in capsys.readouterr().out


@pytest.mark.parametrize("form", ["--yaml", "--json"])
def test_the_settings_that_are_shown_are_a_profile_that_gives_them_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setenv("PNAS_LR", "1e-3")
    place = ("config", "show", "--backend", "volcano", "--kubeconfig", str(tmp_path / "none"))
    options = ("--hardware", "atlas-800-9000", "--node-selector", "disk=fast", "--env", "A=b: c", "--no-decay-all")
    more = ("--mode", "performance", "--name", "n1", "--steps", "none", "--profile", "recommended", "--queue", "1e3")
    monkeypatch.setattr("launcher.commands.config.resolve_job", _offline)
    assert launch(*place, *options, *more, form) == 0
    (tmp_path / "shown.yaml").write_text(capsys.readouterr().out)
    monkeypatch.delenv("PNAS_LR")
    tables = []
    for words in ((*options, *more, "--lr", "1e-3"), ("--profile", str(tmp_path / "shown.yaml"))):
        assert launch(*place, *words, "--json") == 0
        settings = one_document(capsys.readouterr().out, "Config")["settings"]
        tables.append({name: (entry["value"], entry["set"]) for name, entry in settings.items()})
    assert tables[0] == tables[1]


def _offline(options: dict[str, Any], profile: str | None, _choose: Any) -> tuple[Any, ...]:
    from launcher.settings.layers import resolve_settings
    from trainer.shared.config.options import given_options

    return resolve_settings(given_options(options), profile), None, ""
