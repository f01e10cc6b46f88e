"""`submit` with the real trainer on real images: to the end, through a terminal, past a killed launcher."""

import codecs
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

REPOSITORY = Path(__file__).parents[2]
SMALL = (
    *("--device", "cpu", "--npus", "2", "--mode", "performance", "--model", "pnasnet5tiny"),
    *("--image-size", "32", "--batch-size", "2", "--steps", "3", "--warmup-steps", "1", "--workers", "0"),
)


def make_images(root: Path) -> None:
    for split, count in (("train", 8), ("val", 2)):
        for label in range(2):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (40, 36), (90 * label, 20 * number, 60)).save(folder / f"{number}.JPEG")


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    # Without KUBECONFIG: the tests must not reach a cluster of this machine's owner.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PNAS_", "KUBE"))}
    state = {
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "HOME": str(tmp_path),
    }
    return inherited | state | {"OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "150", "LINES": "40"}


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "launcher", *words]


def run(environ: dict[str, str], *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(*words), cwd=REPOSITORY, env=environ, capture_output=True, text=True, timeout=300, check=False
    )


class PseudoTerminal:
    """A launcher in a new terminal, which is its controlling terminal, as in a user's shell."""

    # As a shell does, listen to Ctrl-C: a background job, as the tests may be, ignores it.
    _TAKE_TERMINAL = (
        "import fcntl, os, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        "signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    )

    def __init__(self, environ: dict[str, str], *words: str) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", self._TAKE_TERMINAL, *command(*words)],
            cwd=REPOSITORY,
            env=environ,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.output = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()  # a read may end inside a letter

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def read_until(self, text: str) -> None:
        while text not in self.output:
            self.output += self._decoder.decode(os.read(self._master, 65536))

    def finish(self) -> int:
        """Read the rest of the output; return the exit code."""
        while True:
            try:
                block = os.read(self._master, 65536)
            except OSError:  # Linux reports a closed terminal so
                break
            self.output += self._decoder.decode(block)
        os.close(self._master)
        return self.process.wait(timeout=240)


def screen(output: str) -> list[str]:
    """Return the lines that remain on the screen; handles only the escape sequences that the launcher uses."""
    lines, row = [""], 0
    for part in re.findall(r"\x1b\[\??[\d;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", output):
        if part == "\n":
            row += 1
            lines += [""] * (row - len(lines) + 1)
        elif part.endswith("A") and part.startswith("\x1b"):
            row -= int(part[2:-1] or 1)
        elif part == "\x1b[2K":
            lines[row] = ""
        elif not part.startswith(("\x1b", "\r")):
            lines[row] += part
    return [line.rstrip() for line in lines]


def test_a_terminal_has_a_line_per_device_and_keeps_the_summary(tmp_path: Path, environ: dict[str, str]) -> None:
    make_images(tmp_path / "data")
    terminal = PseudoTerminal(
        environ, "submit", *SMALL, "--data-path", str(tmp_path / "data"), "--output", str(tmp_path / "out")
    )
    assert terminal.finish() == 0, terminal.output
    lines = screen(terminal.output)
    rows = [line for line in lines if re.match(r"rank \d cpu:\d", line)]
    assert [row.split()[:3] for row in rows] == [["rank", "0", "cpu:0"], ["rank", "1", "cpu:1"]], lines
    assert all("images/s" in row for row in rows), rows
    (job,) = [line for line in lines if re.match(r"job .* %", line)]
    assert re.search(r" 100\.0 %  █+  .*4/4 ", job), job
    assert not [line for line in lines if "] step " in line], "a step changes the line of the job and does not scroll"
    end = lines[lines.index(rows[1]) + 1 :]
    assert end[0].startswith("Succeeded  pnas-performance-tiny-")
    summary = {line.split()[0]: line for line in end if line}
    assert re.search(r"\d+\.\d images/s$", summary["speed"])
    assert re.search(r" lines from 2 devices, 0 missing$", summary["log"])
    assert Path(summary["files"].split()[1]).parent == tmp_path / "out"


def test_a_device_has_one_line_in_a_narrow_terminal(tmp_path: Path, environ: dict[str, str]) -> None:
    make_images(tmp_path / "data")
    folders = ("--data-path", str(tmp_path / "data"), "--output", str(tmp_path / "out"))
    assert run(environ, "submit", *SMALL, *folders).returncode == 0
    terminal = PseudoTerminal(environ | {"COLUMNS": "40"}, "logs", "-f")
    assert terminal.finish() == 0, terminal.output
    lines = screen(terminal.output)
    [first] = [number for number, line in enumerate(lines) if re.match(r"job .* %", line)]
    assert lines[first].startswith("job           100.0 %  ")
    assert lines[first + 1].startswith("rank 0 cpu:0  ")
    assert lines[first + 2].startswith("rank 1 cpu:1  ")
    assert lines[first + 3].startswith("Succeeded")
    assert max(map(len, lines[first : first + 3])) <= 40


def test_a_job_survives_ctrl_c_and_a_killed_launcher_and_its_name_is_kept(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    make_images(tmp_path / "data")
    folders = ("--data-path", str(tmp_path / "data"), "--output", str(tmp_path / "out"), "--name", "mine")
    terminal = PseudoTerminal(environ, "submit", *SMALL, *folders)
    terminal.read_until("come back")
    terminal.type(b"\x03")
    assert terminal.finish() == 130
    assert "no cluster is configured: the job runs on this machine" in terminal.output
    assert "job mine goes on" in terminal.output
    assert "python -m launcher cancel mine" in terminal.output

    follower = subprocess.Popen(command("logs", "mine", "-f"), cwd=REPOSITORY, env=environ, stdout=subprocess.DEVNULL)
    follower.send_signal(signal.SIGKILL)
    assert follower.wait() == -signal.SIGKILL

    assert run(environ, "wait", "mine", "--timeout", "100s").returncode == 0
    log = run(environ, "logs", "mine").stdout
    assert "[rank 0 cpu:0] result mode=performance" in log
    status = json.loads(run(environ, "status", "mine", "--json").stdout)
    assert status["status"]["result"]["output"] == status["output"] == str(tmp_path / "out" / "mine")
    refused = run(environ, "submit", *SMALL, *folders)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (6, 1)
    assert run(environ, "delete", "mine").returncode == 0
    refused = run(environ, "submit", *SMALL, *folders)
    assert refused.returncode == 6
    assert f"{tmp_path / 'out' / 'mine'} holds an earlier run" in refused.stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--npu", "2"), 2, "Unknown option: --npu. Did you mean --npus?"),
        (("--epochs", "many"), 2, "--epochs"),
        (("--backend", "slurm"), 2, "--backend"),
        (("--backend", "volcano"), 3, "no cluster is configured"),
        (("--mode", "eval"), 2, "--mode eval needs --weights"),
        (("--profile", "recomended"), 2, "did you mean recommended"),
        (("--name", "Mine"), 2, "--name Mine"),
        (("--data-path", "nowhere"), 2, "nowhere: no such folder"),
        (("--data-path", "nowhere"), 2, "(no cluster is configured: the job runs on this machine (--backend local))"),
        (("--data-path", "."), 2, "no train/ and no val/"),
        (("--output", "file/out"), 2, "file is a file"),
        (("--nodes", "2"), 2, "this machine only"),
        (("--resume", "nowhere"), 2, "nowhere: no such folder"),
        (("--resume", "auto"), 2, "--resume auto needs --name"),
        (("--resume", "auto", "--name", "new", "--data-path", "nowhere"), 2, "nowhere: no such folder"),
        (("--rank-table", "nowhere.json"), 2, "no such file"),
        (("--mode", "finetune", "--weights", "nowhere.pth"), 2, "no such file"),
    ],
)
def test_a_mistake_gives_one_line_and_creates_nothing(
    tmp_path: Path, environ: dict[str, str], words: Sequence[str], code: int, message: str
) -> None:
    for split in ("train", "val"):
        (tmp_path / "data" / split).mkdir(parents=True)
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    options = {"--data-path": "data", "--output": "out"}
    options |= dict(zip(words[::2], words[1::2], strict=True))
    result = subprocess.run(
        command("submit", *(word for option in options.items() for word in option)),
        cwd=tmp_path,
        env=environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert (result.returncode, result.stdout) == (code, "")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_config_show_names_the_origin_of_each_value(environ: dict[str, str]) -> None:
    result = run(environ | {"PNAS_LR": "0.2"}, "config", "show", "--npus", "2", "--profile", "recommended", "--json")
    settings = json.loads(result.stdout)["settings"]
    assert settings["lr"] == {"value": 0.2, "origin": "environment", "set": True}
    assert settings["npus"] == {"value": 2, "origin": "flag", "set": True}
    assert settings["ema"] == {"value": 0.9998, "origin": "profile recommended", "set": True}
    assert settings["epochs"] == {"value": 90, "origin": "mode full", "set": False}


KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{name: away, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: me, user: {token: x}}]
contexts: [{name: away, context: {cluster: away, user: me}}]
current-context: away
"""


def test_an_unreachable_cluster_is_named_and_the_job_does_not_run_on_this_machine_instead(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    config = tmp_path / "kubeconfig"
    config.write_text(KUBECONFIG)
    environ |= {"KUBECONFIG": str(config)}
    result = run(environ, "submit", *SMALL, "--image", "registry.example/pnas:1")
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (3, "", 1), result.stderr
    assert "https://127.0.0.1:1 (context away of kubeconfig" in result.stderr
    assert "the connection was refused" in result.stderr
    assert "run on this machine with --backend local" in result.stderr
    assert json.loads(run(environ, "list", "--backend", "local", "--json").stdout)["items"] == []
    settings = run(environ, "config", "show")
    assert settings.returncode == 0
    assert "the cluster's defaults are not in it: " in settings.stderr


@pytest.mark.parametrize("words", [("--help",), ("logs", "--help"), ("list",)])
def test_a_reading_command_imports_neither_torch_nor_kubernetes_nor_pydantic(
    environ: dict[str, str], words: Sequence[str]
) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "launcher", *words]
    result = subprocess.run(command, cwd=REPOSITORY, env=environ, capture_output=True, text=True, check=True)
    modules = {line.rpartition("|")[2].strip().split(".")[0] for line in result.stderr.splitlines()}
    assert "launcher" in modules
    assert not modules & {"torch", "torchvision", "kubernetes", "numpy", "pydantic", "yaml"}
    if words == ("--help",):
        assert not modules & {"cyclopts", "rich"}


def test_submits_help_shows_every_setting_without_importing_torch(environ: dict[str, str]) -> None:
    program = (
        "import sys; from launcher.cli import main; main(['submit', '--help']); print(*sys.modules, file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, env=environ, capture_output=True, text=True, check=True
    )
    assert not {name.split(".")[0] for name in result.stderr.split()} & {"torch", "torchvision", "kubernetes", "numpy"}
    for word in ("--npus", "--data-path", "--label-smoothing", "--profile", "--detach", "Examples:"):
        assert word in result.stdout
    assert not re.search(r"^ *--run-name", result.stdout, re.MULTILINE)
