"""Following, leaving and ending jobs: real launchers and runners around a small program that prints tagged lines."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from launcher.jobs import JobRef, Phase
from launcher.local import jobs as local
from launcher.local import records

# What every stand-in program begins with: `say` prints a numbered line as the trainer's supervisor does.
PRELUDE = """
import os, signal, sys, time
from pathlib import Path
counts = {}
def say(rank, text, skip=0):
    counts[rank] = counts.get(rank, 0) + 1 + skip
    tag = f"rank {rank} cpu:{rank}" if rank is not None else "node 0"
    print(f"[{tag} #{counts[rank]}] {text}", flush=True)
def until(name):
    deadline = time.monotonic() + 60  # no test leaves a program behind
    while not Path(name).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
"""
RESULT = "result mode=full top1=97.8 top5=99.9 images=360 fps=95.1 train_s=170 wall_s=180"


@dataclass
class Bench:
    """A state home of its own, with programs to run as jobs and launchers to look at them."""

    home: Path
    environ: dict[str, str]

    @property
    def backend(self) -> local.LocalBackend:
        return local.LocalBackend(records.state_home(self.environ))

    def start(self, program: str, name: str = "job", *, grace_s: float = 5) -> JobRef:
        script = self.home / f"{name}.py"
        script.write_text(PRELUDE + program)
        record = {"spec": {"train": {"grace_s": grace_s, "mode": "full"}}, "output": str(self.home / "out" / name)}
        return self.backend.start(name, [sys.executable, str(script)], record, self.environ)

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "launcher", *words]

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self.command(*words), env=self.environ, capture_output=True, text=True, timeout=240, check=False
        )

    def popen(self, *words: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            self.command(*words), env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )

    def signal_for(self, name: str) -> None:
        """Let a program that waits in `until(name)` go on."""
        (self.home / name).touch()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.chdir(tmp_path)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so do theirs
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PNAS_")}
    return Bench(tmp_path, environ | {"XDG_STATE_HOME": str(tmp_path / "state"), "PYTHONPATH": str(REPOSITORY)})


REPOSITORY = Path(__file__).parents[2]


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not true():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)


def sleeps(pid: int) -> bool:
    """Whether it is in `time.sleep`: all that is to be seen of a launcher that waits for a job's end."""
    return "nanosleep" in Path(f"/proc/{pid}/wchan").read_text()


def test_a_followed_job_shows_every_line_and_ends_with_a_summary(bench: Bench) -> None:
    bench.start(
        f"""
for step in range(500):
    for rank in (0, 1):
        say(rank, f"step epoch=0 step={{step}} steps=500 loss=0.5")
say(0, "{RESULT} output=" + str(Path("out/job").absolute()))
"""
    )
    result = bench.run("logs", "job", "-f")
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
    assert summary["speed"] == "95.1 images/s"
    assert summary["training"] == "2 min 50 s"
    assert summary["log"] == "1,001 lines from 2 devices, 0 missing"
    assert summary["files"] == str(bench.home / "out/job")


def test_a_summary_says_what_the_time_went_into(bench: Bench) -> None:
    bench.start("say(0, 'result mode=eval top1=50 images=4 fps=9 train_s=12')")
    assert "\nevaluation  12 s\n" in bench.run("logs", "job", "-f").stdout
    bench.start("say(0, 'result mode=full top1=50 images=4 train_s=0')", name="warm")
    assert "training" not in bench.run("logs", "warm", "-f").stdout


def test_lines_that_are_missing_are_named_with_their_bounds(bench: Bench) -> None:
    bench.start("say(0, 'a')\nsay(1, 'a')\nsay(1, 'b', skip=3)\nsay(0, 'b')")
    result = bench.run("logs", "job", "--follow")
    assert "--- lines 2-4 of rank 1 cpu:1 are missing ---" in result.stderr
    assert "log        4 lines from 2 devices, 3 missing; lines 2-4 of rank 1 cpu:1 are missing" in result.stdout


def test_the_first_cause_of_a_failure_is_the_last_line_shown(bench: Bench) -> None:
    bench.start(
        """
say(1, "error batch 3 cannot be read")
say(0, "error connection closed by peer")
say(None, 'failed rank=1 device=cpu:1 cause="batch 3 cannot be read"')
sys.exit(1)
"""
    )
    for words in (("logs", "job", "-f"), ("wait", "job")):
        result = bench.run(*words)
        assert result.returncode == 1
        assert result.stderr.splitlines()[-1] == "error: job job failed: rank 1 on cpu:1: batch 3 cannot be read"
    status = json.loads(bench.run("status", "job", "--json").stdout)
    assert status["status"]["phase"] == "Failed"
    assert status["status"]["reason"] == "rank 1 on cpu:1: batch 3 cannot be read"
    assert status["status"]["exitCode"] == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_that_happens_to_a_launcher_ends_its_job(bench: Bench, number: signal.Signals) -> None:
    bench.start("say(0, 'before')\nuntil('go')\nsay(0, 'after')")
    launcher = bench.popen("logs", "job", "-f")
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == b"[rank 0 cpu:0] before\n"
    launcher.send_signal(number)
    _, errors = launcher.communicate(timeout=300)
    if number is signal.SIGKILL:
        assert launcher.returncode == -9
    else:
        assert launcher.returncode == 130
        said = errors.decode()
        assert "python -m launcher logs job -f" in said
        assert "python -m launcher cancel job" in said
        assert "Traceback" not in said
    assert bench.backend.get(JobRef("local", "job")).phase is Phase.RUNNING
    bench.signal_for("go")
    again = bench.run("logs", "job", "-f")
    assert again.returncode == 0
    assert again.stdout.splitlines()[:2] == ["[rank 0 cpu:0] before", "[rank 0 cpu:0] after"]
    assert "2 lines from 1 device, 0 missing" in again.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("wait", "job"), "job job goes on. Come back with `python -m launcher logs job -f`"),
        (("cancel", "job"), "job job is still stopping; see how far it is with `python -m launcher status job`"),
        (("delete", "job", "--force"), "job job is still stopping; see how far it is with"),
    ],
)
def test_ctrl_c_says_what_to_type_next(bench: Bench, words: tuple[str, ...], said: str) -> None:
    ref = bench.start("signal.signal(signal.SIGTERM, lambda *_: say(0, 'asked'))\nsay(0, 'ready')\nuntil('go')")
    wait_until(lambda: b"ready" in b"".join(block.data for block in bench.backend.logs(ref)))
    launcher = bench.popen(*words)
    if words[0] != "wait":
        wait_until(lambda: b"asked" in b"".join(block.data for block in bench.backend.logs(ref)))
    else:
        wait_until(lambda: sleeps(launcher.pid))
    launcher.send_signal(signal.SIGINT)
    _, errors = launcher.communicate(timeout=300)
    assert launcher.returncode == 130
    assert said in errors.decode().splitlines()[-1]
    bench.signal_for("go")
    wait_until(lambda: bench.backend.get(ref).phase.ended)


def test_ctrl_c_while_a_job_is_created_never_leaves_half_a_job(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    write = records.write_record

    def interrupted(path: Path, kind: str, values: dict[str, object]) -> None:
        signal.raise_signal(signal.SIGINT)
        write(path, kind, values)

    monkeypatch.setattr(records, "write_record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.start("say(0, 'it runs')")
    monkeypatch.undo()
    ref = JobRef("local", "job")
    wait_until(lambda: bench.backend.get(ref).phase is Phase.SUCCEEDED)


def test_a_job_has_a_session_of_its_own(bench: Bench) -> None:
    ref = bench.start("until('go')")
    details = bench.backend.get(ref).details
    assert os.getsid(details["trainer"]) == os.getsid(details["runner"]) == details["runner"] != os.getsid(0)
    bench.signal_for("go")
    wait_until(lambda: bench.backend.get(ref).phase is Phase.SUCCEEDED)


def test_a_job_whose_processes_vanish_is_lost(bench: Bench) -> None:
    ref = bench.start("say(0, 'here')\nuntil('never')")
    details = bench.backend.get(ref).details
    os.kill(details["runner"], signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{details['runner']}").exists())
    assert bench.backend.get(ref).phase is Phase.RUNNING, "the trainer lives on without its runner"
    os.kill(details["trainer"], signal.SIGKILL)
    result = bench.run("logs", "job", "-f")
    assert result.returncode == 1
    assert "job job lost: its processes are gone" in result.stderr
    assert bench.run("cancel", "job").returncode == 0, "there is nothing left to cancel"


def test_cancel_lets_the_job_save_and_can_be_repeated(bench: Bench) -> None:
    bench.start(
        """
def save(*_):
    say(0, "saved")
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
say(0, "ready")
until("never")
"""
    )
    clock = records.state_home(bench.environ) / "job" / records.CLOCK
    wait_until(clock.exists)
    assert clock.read_text().split()[1] == str(len("[rank 0 cpu:0 #1] ready\n"))
    follower = bench.popen("logs", "job", "-f")
    first = bench.run("cancel", "job")
    assert (first.returncode, first.stdout) == (0, "job Cancelled: stopped by SIGTERM; it can go on\n")
    out, errors = follower.communicate(timeout=300)
    assert follower.returncode == 125
    assert b"[rank 0 cpu:0] saved\n" in out
    assert b"job job cancelled" in errors
    second = bench.run("cancel", "job")
    assert (second.returncode, second.stderr) == (0, "job job had ended already: Cancelled\n")
    assert bench.run("wait", "job").returncode == 125


def test_a_job_that_does_not_stop_is_killed_when_its_grace_is_over(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = bench.start("signal.signal(signal.SIGTERM, signal.SIG_IGN)\nsay(0, 'ready')\nuntil('never')", grace_s=0)
    wait_until(lambda: b"ready" in b"".join(block.data for block in bench.backend.logs(ref)))
    monkeypatch.setattr(local, "_EXTRA_GRACE_S", 0.5)
    bench.backend.cancel(ref)
    state = bench.backend.get(ref)
    assert (state.phase, state.details["returncode"]) == (Phase.CANCELLED, -9)


def test_a_wait_that_is_over_says_so_and_leaves_the_job_alone(bench: Bench) -> None:
    bench.start("until('go')")
    result = bench.run("wait", "job", "--timeout", "0.3s")
    assert result.returncode == 124
    assert result.stderr == "error: job job is still Running after 0.3s; it goes on\n"
    bench.signal_for("go")
    result = bench.run("wait", "--timeout", "1m")
    assert (result.returncode, result.stdout, result.stderr) == (0, "job Succeeded\n", "job job\n")


def test_delete_refuses_a_running_job_and_keeps_what_it_wrote(bench: Bench) -> None:
    bench.start("Path('out/job').mkdir(parents=True)\nuntil('never')")
    wait_until((bench.home / "out/job").exists)
    refused = bench.run("delete", "job")
    assert refused.returncode == 6
    assert "cancel job` first" in refused.stderr
    result = bench.run("delete", "job", "--force")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"job deleted; its files stay in {bench.home / 'out/job'}\n"
    assert (bench.home / "out/job").is_dir()
    assert bench.run("status", "job").returncode == 4


def test_a_reader_that_goes_away_is_not_an_error(bench: Bench) -> None:
    ref = bench.start("for n in range(60000): say(0, 'x' * 60)")
    wait_until(lambda: bench.backend.get(ref).phase.ended)
    launcher = bench.popen("logs", "job")
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == b"[rank 0 cpu:0] " + b"x" * 60 + b"\n"
    launcher.stdout.close()
    assert launcher.stderr is not None
    assert launcher.stderr.read() == b""
    assert launcher.wait(timeout=300) == 141
    launcher.stderr.close()


def test_a_full_disk_behind_standard_output_is_one_line(bench: Bench) -> None:
    ref = bench.start("say(0, 'x')")
    wait_until(lambda: bench.backend.get(ref).phase.ended)
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(
            bench.command("logs", "job"),
            env=bench.environ,
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=240,
            check=False,
        )
    assert result.returncode == 1
    assert result.stderr == b"error: standard output: No space left on device; a running job goes on\n"


def test_lines_are_chosen_by_device_rank_pattern_and_number(bench: Bench) -> None:
    ref = bench.start(
        """
print("warming up", flush=True)
for n in range(10):
    for rank in (0, 1):
        say(rank, f"n={n}")
say(None, "done")
"""
    )
    wait_until(lambda: bench.backend.get(ref).phase.ended)

    def texts(*words: str) -> list[str]:
        result = bench.run("logs", "job", *words)
        assert (result.returncode, result.stderr) == (0, "")
        return result.stdout.splitlines()

    assert texts("--rank", "1", "--tail", "2") == ["[rank 1 cpu:1] n=8", "[rank 1 cpu:1] n=9"]
    assert texts("--device", "cpu:0", "--grep", "n=[37]") == ["[rank 0 cpu:0] n=3", "[rank 0 cpu:0] n=7"]
    assert texts("--tail", "1") == ["[node 0] done"]
    assert texts("--tail", "0") == []
    assert texts("--raw")[:2] == ["warming up", "[rank 0 cpu:0 #1] n=0"]
    assert len(texts("--since", "1h")) == 22
    rows = [json.loads(line) for line in texts("--json", "--device", "1")]
    assert rows[9] == {
        "apiVersion": "pnas/v1",
        "kind": "LogLine",
        "rank": 1,
        "device": "cpu:1",
        "node": None,
        "number": 10,
        "line": "n=9",
    }
    assert bench.run("logs", "job", "-f", "--tail", "1").stdout.startswith("[node 0] done\nSucceeded")


def test_every_reading_command_answers_in_json(bench: Bench) -> None:
    bench.start("say(0, 'step epoch=0 step=3 steps=9 loss=nan')\nuntil('go')", name="one")
    bench.start(f"say(0, '{RESULT}')", name="two")
    bench.signal_for("go")
    assert json.loads(bench.run("wait", "two", "--json").stdout)["status"]["result"]["top1"] == 97.8
    jobs = json.loads(bench.run("list", "--json").stdout)
    assert (jobs["apiVersion"], jobs["kind"]) == ("pnas/v1", "JobList")
    assert [(item["kind"], item["name"]) for item in jobs["items"]] == [("Job", "one"), ("Job", "two")]
    latest = bench.run("status", "--json")
    assert json.loads(latest.stdout)["name"] == "two"
    assert latest.stderr == "job two\n", "a name that was left out is said"
    step = json.loads(bench.run("status", "one", "--json").stdout, parse_constant=pytest.fail)["status"]["step"]
    assert step == {"epoch": 0, "step": 3, "steps": 9, "loss": "nan"}, "JSON has no number for it"


@pytest.mark.parametrize(("encoding", "folder"), [("utf-8", "\udcff"), ("ascii", "é"), ("ascii", "\udcff")])
def test_a_path_that_the_terminal_cannot_show_is_no_error(bench: Bench, encoding: str, folder: str) -> None:
    bench.environ["PYTHONIOENCODING"] = encoding
    output = bench.home / folder / "out"
    output.mkdir(parents=True)
    ref = bench.backend.start(
        "job", ["true"], {"spec": {"train": {"mode": "full"}}, "output": str(output)}, bench.environ
    )
    wait_until(lambda: bench.backend.get(ref).phase.ended)
    assert json.loads(bench.run("status", "job", "--json").stdout)["output"] == str(output)
    for words in (("status", "job"), ("logs", "job", "-f"), ("delete", "job")):
        result = bench.run(*words)
        assert (result.returncode, result.stderr) == (0, "")
        assert str(bench.home) in result.stdout


def test_status_and_list_are_readable(bench: Bench) -> None:
    ref = bench.start(f"say(0, 'step epoch=8 epochs=9 step=3 steps=5 loss=0.123456')\nsay(0, '{RESULT}')")
    wait_until(lambda: bench.backend.get(ref).phase.ended)
    status = bench.run("status", "job").stdout
    assert re.search(r"^step +epoch 9/9, 3/5, loss 0.1235$", status, re.MULTILINE)
    for part in ("Succeeded", "97.8 % of 360 images", "started as process", str(bench.home / "out/job"), "console.log"):
        assert part in status
    row = bench.run("list").stdout.splitlines()[1].split()
    assert row[:4] == ["job", "Succeeded", "local", "full"]
    assert row[-2:] == ["97.8", "%"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("logs",), 4, "there are no jobs yet"),
        (("status", "nix"), 4, "there is no job `nix`"),
        (("cancel", "nix"), 4, "there is no job `nix`"),
        (("logs", "nix", "--raw", "--json"), 2, "contradict"),
        (("logs", "nix", "--grep", "("), 2, "--grep ("),
        (("logs", "nix", "--tail", "-1"), 2, '--tail: "-1"'),
        (("wait", "nix", "--timeout", "soon"), 2, "is no duration"),
        (("cancel",), 2, "NAME"),
        (("logs", "--folow"), 2, "Did you mean --follow?; see `python -m launcher logs --help`"),
        (("logs", "a", "b"), 2, "unexpected argument b; see `python -m launcher logs --help`"),
        (("config", "shwo"), 2, 'Did you mean "show"?'),
        (("statu",), 2, 'Did you mean "status"?'),
        (("xyzzy",), 2, "wait, list, ...; see `python -m launcher --help`"),
    ],
)
def test_a_mistake_is_one_line_with_the_documented_code(
    bench: Bench, words: tuple[str, ...], code: int, said: str
) -> None:
    result = bench.run(*words)
    assert (result.returncode, result.stdout) == (code, "")
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
