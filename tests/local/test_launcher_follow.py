"""Follow, leave and end jobs: real launchers and job processes around small programs that print numbered lines."""

import json
import os
import re
import signal
from pathlib import Path

import pytest

from launcher.jobs import JobRef, Phase
from launcher.local import records
from launcher.local.jobs import LocalJobs
from launcher.local.submitter import start_job
from tests.local.job_runner import JobRunner, wait_until

RESULT = "result mode=full top1=97.8 top5=99.9 images=360 best_top1=98.1 best_epoch=6 fps=95.1 train_s=170 wall_s=180"


def sleeps(pid: int) -> bool:
    """Return whether a process is in `time.sleep`: the one visible sign of a launcher that waits for a job."""
    return "nanosleep" in Path(f"/proc/{pid}/wchan").read_text()


def test_a_followed_job_shows_every_line_and_ends_with_a_summary(runner: JobRunner) -> None:
    runner.start(
        f"""
for step in range(500):
    for rank in (0, 1):
        say(rank, f"step epoch=0 step={{step}} steps=500 loss=0.5")
say(0, "{RESULT} output=" + str(Path("out/job").absolute()))
"""
    )
    once = runner.launch("logs", "job", "-f").stdout.splitlines()
    assert once[:2] == [f"[rank 0 cpu:0] step epoch=0 step={step} steps=500 loss=0.5" for step in (0, 1)]
    assert "repeated   500 lines of several ranks shown once; --all-ranks shows each" in once
    result = runner.launch("logs", "job", "-f", "--all-ranks")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[:2] == [
        "[rank 0 cpu:0] step epoch=0 step=0 steps=500 loss=0.5",
        lines[0].replace("0 cpu:0", "1 cpu:1"),
    ]
    summary = {line.split(maxsplit=1)[0]: line.split(maxsplit=1)[1] for line in lines[1001:]}
    assert summary["Succeeded"].startswith("job in ")
    assert summary["top-1"] == "97.8 % of 360 images"
    assert summary["top-5"] == "99.9 % of 360 images"
    assert summary["best"] == "top-1 98.1 % after epoch 7"
    assert summary["speed"] == "95.1 images/s"
    assert summary["training"] == "2 min 50 s"
    assert summary["log"] == "1,001 lines from 2 devices, 0 missing"
    assert summary["files"] == str(runner.home / "out/job")


def test_a_summary_names_the_phase_that_took_the_time(runner: JobRunner) -> None:
    runner.start("say(0, 'result mode=eval top1=50 images=4 fps=9 train_s=12')")
    assert "\nevaluation  12 s\n" in runner.launch("logs", "job", "-f").stdout
    runner.start("say(0, 'result mode=full top1=50 images=4 train_s=0')", name="warm")
    assert "training" not in runner.launch("logs", "warm", "-f").stdout


def test_missing_lines_are_named_by_their_first_and_last_number(runner: JobRunner) -> None:
    runner.start("say(0, 'a')\nsay(1, 'a')\nsay(1, 'b', skip=3)\nsay(0, 'b')")
    result = runner.launch("logs", "job", "--follow")
    assert "--- lines 2-4 of rank 1 cpu:1 are missing ---" in result.stderr
    assert "log        4 lines from 2 devices, 3 missing; lines 2-4 of rank 1 cpu:1 are missing" in result.stdout


def test_the_first_cause_of_a_failure_is_the_last_line_shown(runner: JobRunner) -> None:
    runner.start(
        """
say(1, "error batch 3 cannot be read")
say(0, "error connection closed by peer")
say(None, 'failed rank=1 device=cpu:1 cause="batch 3 cannot be read"')
sys.exit(1)
"""
    )
    for words in (("logs", "job", "-f"), ("wait", "job")):
        result = runner.launch(*words)
        assert result.returncode == 1
        assert result.stderr.splitlines()[-1] == "error: job job failed: rank 1 on cpu:1: batch 3 cannot be read"
    status = json.loads(runner.launch("status", "job", "--json").stdout)
    assert status["status"]["phase"] == "Failed"
    assert status["status"]["reason"] == "rank 1 on cpu:1: batch 3 cannot be read"
    assert status["status"]["exitCode"] == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_signal_to_a_launcher_ends_its_job(runner: JobRunner, number: signal.Signals) -> None:
    runner.start("say(0, 'before')\nwait_for_file('go')\nsay(0, 'after')")
    launcher = runner.launch_in_background("logs", "job", "-f")
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == b"[rank 0 cpu:0] before\n"
    launcher.send_signal(number)
    _, errors = launcher.communicate(timeout=300)
    if number is signal.SIGKILL:
        assert launcher.returncode == -9
    else:
        assert launcher.returncode == 130
        message = errors.decode()
        assert "python -m launcher logs job -f" in message
        assert "python -m launcher cancel job" in message
        assert "Traceback" not in message
    assert runner.jobs.get(JobRef("local", "job")).phase is Phase.RUNNING
    runner.create_file("go")
    follower = runner.launch("logs", "job", "-f")
    assert follower.returncode == 0
    assert follower.stdout.splitlines()[:2] == ["[rank 0 cpu:0] before", "[rank 0 cpu:0] after"]
    assert "2 lines from 1 device, 0 missing" in follower.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("wait", "job"), "job job goes on. Come back with `python -m launcher logs job -f`"),
        (("cancel", "job"), "job job is still stopping; see how far it is with `python -m launcher status job`"),
        (("delete", "job", "--force"), "job job is still stopping; see how far it is with"),
    ],
)
def test_ctrl_c_prints_the_next_command(runner: JobRunner, words: tuple[str, ...], message: str) -> None:
    ref = runner.start(
        "signal.signal(signal.SIGTERM, lambda *_: say(0, 'asked'))\nsay(0, 'ready')\nwait_for_file('go')"
    )
    wait_until(lambda: b"ready" in runner.log(ref))
    launcher = runner.launch_in_background(*words)
    if words[0] != "wait":
        wait_until(lambda: b"asked" in runner.log(ref))
    else:
        wait_until(lambda: sleeps(launcher.pid))
    launcher.send_signal(signal.SIGINT)
    _, errors = launcher.communicate(timeout=300)
    assert launcher.returncode == 130
    assert message in errors.decode().splitlines()[-1]
    runner.create_file("go")
    runner.wait_for_end(ref)


def test_ctrl_c_while_a_job_is_created_never_leaves_half_a_job(
    runner: JobRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = records.write_record

    def interrupt_and_write(path: Path, kind: str, values: dict[str, object]) -> None:
        signal.raise_signal(signal.SIGINT)
        write(path, kind, values)

    with monkeypatch.context() as patch:
        patch.setattr(records, "write_record", interrupt_and_write)
        with pytest.raises(KeyboardInterrupt):
            runner.start("say(0, 'it runs')")
    ref = JobRef("local", "job")
    wait_until(lambda: runner.jobs.get(ref).phase is Phase.SUCCEEDED)


def test_a_job_runs_in_a_separate_session(runner: JobRunner) -> None:
    ref = runner.start("wait_for_file('go')")
    details = runner.jobs.get(ref).details
    assert os.getsid(details["trainer"]) == os.getsid(details["runner"]) == details["runner"] != os.getsid(0)
    runner.create_file("go")
    wait_until(lambda: runner.jobs.get(ref).phase is Phase.SUCCEEDED)


def test_a_job_whose_processes_vanish_is_lost(runner: JobRunner) -> None:
    ref = runner.start("say(0, 'here')\nwait_for_file('never')")
    details = runner.jobs.get(ref).details
    os.kill(details["runner"], signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{details['runner']}").exists())
    assert runner.jobs.get(ref).phase is Phase.RUNNING, "the trainer lives on without the job process"
    os.kill(details["trainer"], signal.SIGKILL)
    result = runner.launch("logs", "job", "-f")
    assert result.returncode == 1
    assert "job job lost: its processes are gone" in result.stderr
    assert runner.launch("cancel", "job").returncode == 0, "there is nothing left to cancel"


def test_cancel_lets_the_job_save_and_can_be_repeated(runner: JobRunner) -> None:
    runner.start(
        """
def save(*_):
    say(0, "saved")
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
say(0, "ready")
wait_for_file("never")
"""
    )
    clock = records.state_home(runner.environ) / "job" / records.CLOCK
    wait_until(clock.exists)
    assert clock.read_text().split()[1] == str(len("[rank 0 cpu:0 #1] ready\n"))
    follower = runner.launch_in_background("logs", "job", "-f")
    first = runner.launch("cancel", "job")
    assert (first.returncode, first.stdout) == (0, "job Cancelled: stopped by SIGTERM; it can go on\n")
    out, errors = follower.communicate(timeout=300)
    assert follower.returncode == 125
    assert b"[rank 0 cpu:0] saved\n" in out
    assert b"job job cancelled" in errors
    second = runner.launch("cancel", "job")
    assert (second.returncode, second.stderr) == (0, "job job had ended already: Cancelled\n")
    assert runner.launch("wait", "job").returncode == 125


def test_a_job_that_does_not_stop_is_killed_when_its_grace_is_over(runner: JobRunner) -> None:
    ref = runner.start(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nsay(0, 'ready')\nwait_for_file('never')", grace_s=0
    )
    wait_until(lambda: b"ready" in runner.log(ref))
    LocalJobs(runner.jobs.root, extra_grace_s=0.5).cancel(ref)
    state = runner.jobs.get(ref)
    assert (state.phase, state.details["returncode"]) == (Phase.CANCELLED, -9)


def test_a_wait_that_times_out_says_so_and_does_not_end_the_job(runner: JobRunner) -> None:
    runner.start("wait_for_file('go')")
    result = runner.launch("wait", "job", "--timeout", "0.3s")
    assert result.returncode == 124
    assert result.stderr == "error: job job is still Running after 0.3 s; it goes on\n"
    runner.create_file("go")
    result = runner.launch("wait", "--timeout", "1m")
    assert (result.returncode, result.stdout, result.stderr) == (0, "job Succeeded\n", "job job\n")


def test_delete_refuses_a_running_job_and_keeps_its_files(runner: JobRunner) -> None:
    runner.start("Path('out/job').mkdir(parents=True)\nwait_for_file('never')")
    wait_until((runner.home / "out/job").exists)
    refused = runner.launch("delete", "job")
    assert refused.returncode == 6
    assert "cancel job` first" in refused.stderr
    result = runner.launch("delete", "job", "--force")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"job deleted; its files stay in {runner.home / 'out/job'}\n"
    assert (runner.home / "out/job").is_dir()
    assert runner.launch("status", "job").returncode == 4


def test_a_reader_that_goes_away_is_not_an_error(runner: JobRunner) -> None:
    ref = runner.start("for n in range(60000): say(0, 'x' * 60)")
    runner.wait_for_end(ref)
    launcher = runner.launch_in_background("logs", "job")
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == b"[rank 0 cpu:0] " + b"x" * 60 + b"\n"
    launcher.stdout.close()
    assert launcher.stderr is not None
    assert launcher.stderr.read() == b""
    assert launcher.wait(timeout=300) == 141
    launcher.stderr.close()


def test_lines_are_chosen_by_device_rank_pattern_and_number(runner: JobRunner) -> None:
    ref = runner.start(
        """
print("warming up", flush=True)
for n in range(10):
    for rank in (0, 1):
        say(rank, f"n={n}")
say(None, "done")
"""
    )
    runner.wait_for_end(ref)

    def texts(*words: str) -> list[str]:
        result = runner.launch("logs", "job", *words)
        assert (result.returncode, result.stderr) == (0, "")
        return result.stdout.splitlines()

    assert texts("--rank", "1", "--tail", "2") == ["[rank 1 cpu:1] n=8", "[rank 1 cpu:1] n=9"]
    assert texts("--device", "cpu:0", "--grep", "n=[37]") == ["[rank 0 cpu:0] n=3", "[rank 0 cpu:0] n=7"]
    assert texts("--tail", "1") == ["[node 0] done"]
    assert texts("--tail", "0") == []
    assert texts("--raw")[:2] == ["warming up", "[rank 0 cpu:0 #1] n=0"]
    assert (len(texts("--since", "1h", "--all-ranks")), len(texts("--since", "1h"))) == (22, 12)
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ \[node 0\] done", texts("--timestamps")[-1])
    refused = runner.launch("logs", "job", "--device", "5")
    assert (refused.returncode, refused.stdout) == (4, "")
    assert refused.stderr == "error: --device 5: the job has rank 0 cpu:0, rank 1 cpu:1\n"
    rows = [json.loads(line) for line in texts("--json", "--device", "1")]
    assert rows[9] == {
        "apiVersion": "pnas/v1",
        "kind": "LogLine",
        "time": None,
        "rank": 1,
        "device": "cpu:1",
        "node": None,
        "number": 10,
        "line": "n=9",
    }
    assert runner.launch("logs", "job", "-f", "--tail", "1").stdout.startswith("[node 0] done\nSucceeded")


def test_every_reading_command_answers_in_json(runner: JobRunner) -> None:
    runner.start("say(0, 'step epoch=0 step=3 steps=9 loss=nan')\nwait_for_file('go')", name="one")
    runner.start(f"say(0, '{RESULT}')", name="two")
    runner.create_file("go")
    assert json.loads(runner.launch("wait", "two", "--json").stdout)["status"]["result"]["top1"] == 97.8
    jobs = json.loads(runner.launch("list", "--json").stdout)
    assert (jobs["apiVersion"], jobs["kind"]) == ("pnas/v1", "JobList")
    assert [item["name"] for item in jobs["items"]] == ["one", "two"]
    latest = runner.launch("status", "--json")
    assert json.loads(latest.stdout)["name"] == "two"
    assert latest.stderr == "job two\n", "the launcher says which job it chose"
    step = json.loads(runner.launch("status", "one", "--json").stdout, parse_constant=pytest.fail)["status"]["step"]
    values = {name: value for name, value in step.items() if value is not None}
    assert values == {"epoch": 0, "step": 3, "steps": 9, "loss": "nan"}, "JSON has no number for it"


@pytest.mark.parametrize(("encoding", "folder"), [("utf-8", "\udcff"), ("ascii", "é"), ("ascii", "\udcff")])
def test_a_path_that_the_terminal_cannot_show_is_no_error(runner: JobRunner, encoding: str, folder: str) -> None:
    runner.environ["PYTHONIOENCODING"] = encoding
    output = runner.home / folder / "out"
    output.mkdir(parents=True)
    record = {"spec": {"train": {"mode": "full"}}, "output": str(output)}
    ref = start_job(runner.jobs, "job", ["true"], record, runner.environ)
    runner.wait_for_end(ref)
    assert json.loads(runner.launch("status", "job", "--json").stdout)["output"] == str(output)
    for words in (("status", "job"), ("logs", "job", "-f"), ("delete", "job")):
        result = runner.launch(*words)
        assert (result.returncode, result.stderr) == (0, "")
        assert str(runner.home) in result.stdout


def test_status_and_list_are_readable(runner: JobRunner) -> None:
    ref = runner.start(f"say(0, 'step epoch=8 epochs=9 step=3 steps=5 loss=0.123456')\nsay(0, '{RESULT}')")
    runner.wait_for_end(ref)
    status = runner.launch("status", "job").stdout
    assert re.search(r"^step +epoch 9/9, 3/5, loss 0.1235$", status, re.MULTILINE)
    for part in (
        "Succeeded",
        "97.8 % of 360 images",
        "started as process",
        str(runner.home / "out/job"),
        "console.log",
    ):
        assert part in status
    row = runner.launch("list").stdout.splitlines()[1].split()
    assert row[:4] == ["job", "Succeeded", "local", "full"]
    assert row[-4:] == ["97.8", "%", "98.1", "%"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("logs",), 4, "there are no jobs yet"),
        (("status", "nix"), 4, "there is no job `nix`"),
        (("cancel", "nix"), 4, "there is no job `nix`"),
        (("logs", "nix", "--since", "soon"), 2, "is no duration"),
        (("logs", "nix", "--grep", "("), 2, "--grep ("),
        (("logs", "nix", "--tail", "-1"), 2, '--tail: "-1"'),
        (("wait", "nix", "--timeout", "soon"), 2, "is no duration"),
        (("cancel",), 2, "NAME"),
        (("logs", "--folow"), 2, "Did you mean --follow?; see `python -m launcher logs --help`"),
        (("logs", "a", "b"), 2, "unexpected argument b; see `python -m launcher logs --help`"),
        (("config", "shwo"), 2, 'Did you mean "show"?'),
        (("statu",), 2, 'Did you mean "status"?'),
        (("xyzzy",), 2, "explain, ...; see `python -m launcher --help`"),
    ],
)
def test_a_mistake_gives_one_line_and_the_documented_code(
    runner: JobRunner, words: tuple[str, ...], code: int, message: str
) -> None:
    result = runner.launch(*words)
    assert (result.returncode, result.stdout) == (code, "")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
