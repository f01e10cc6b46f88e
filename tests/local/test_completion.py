"""The tab key in bash, zsh and fish: commands, options, their values, and the names of the jobs that are there."""

import os
import pty
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from launcher.commands.completion import candidates
from tests.cluster.testbed.requirements import missing_packages
from tests.local.job_runner import REPOSITORY, JobRunner

JOBS = ("first-run", "second-run")


@pytest.fixture(scope="module", autouse=True)
def _shells() -> None:
    problem = missing_packages({"zsh": "zsh", "fish": "fish"})
    assert problem is None, problem


@pytest.fixture
def jobs(runner: JobRunner) -> JobRunner:
    """Return a launcher that knows two jobs, and the program `pnas` in its path."""
    for name in JOBS:
        runner.run_to_end("", name)
    folder = runner.home / "bin"
    folder.mkdir()
    program = folder / "pnas"
    program.write_text(f'#!/bin/sh\ncd {REPOSITORY} && exec .venv/bin/python -m launcher "$@"\n')
    program.chmod(0o755)
    runner.environ["PATH"] = f"{folder}:{os.environ['PATH']}"
    runner.environ["HOME"] = str(runner.home)
    return runner


def _words(jobs: JobRunner, current: str, *before: str) -> list[str]:
    done = jobs.launch("completion", "bash", "--", current, *before)
    assert (done.returncode, done.stderr) == (0, "")
    return [line.partition("\t")[0] for line in done.stdout.splitlines()]


CASES: list[tuple[str, tuple[str, ...], list[str]]] = [
    ("su", (), ["submit"]),
    ("", ("logs",), list(JOBS)),
    ("sec", ("cancel",), ["second-run"]),
    ("", ("report", "first-run"), list(JOBS)),
    ("", ("logs", "--rank", "3"), list(JOBS)),
    ("", ("logs", "-f", "--raw"), list(JOBS)),
    ("--ra", ("logs", "first-run"), ["--rank", "--raw"]),
    ("", ("logs", "first-run", "--backend"), ["auto", "local", "volcano", "batch"]),
    ("v", ("submit", "--npus", "8", "--backend"), ["volcano"]),
    ("", ("submit", "--name"), list(JOBS)),
    ("", ("submit", "--data-path"), []),
    ("--npu", ("submit",), ["--npus"]),
    ("--npu", ("config", "show"), ["--npus"]),
    ("", ("config",), ["show"]),
    ("x", ("nothing",), []),
    ("", ("logs", "--help"), list(JOBS)),
    ("", ("logs", "--backend", "nothing"), list(JOBS)),
    ("", ("logs", "--kubeconfig"), []),
]


def test_the_words_that_can_follow(jobs: JobRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", jobs.environ["XDG_STATE_HOME"])
    monkeypatch.setenv("HOME", jobs.environ["HOME"])
    for current, before, words in CASES:
        assert sorted(word for word, _ in candidates(current, list(before))) == sorted(words), (current, before)


def test_bash_makes_words_of_equal_signs(jobs: JobRunner) -> None:
    assert _words(jobs, "=", "submit", "--backend") == ["auto", "local", "volcano", "batch"]
    assert _words(jobs, "v", "submit", "--backend", "=") == ["volcano"]


def test_a_job_comes_with_its_phase_and_an_option_with_its_meaning(jobs: JobRunner) -> None:
    assert jobs.launch("completion", "fish", "--", "", "logs").stdout.splitlines()[0] == "first-run\tSucceeded"
    assert "--rank\tOnly this rank's lines." in jobs.launch("completion", "fish", "--", "--r", "logs").stdout


@contextmanager
def _silent_cluster(folder: Path) -> Iterator[Path]:
    """Give a kubeconfig of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        path = folder / "config"
        cluster = f"clusters: [{{name: c, cluster: {{server: 'http://127.0.0.1:{server.getsockname()[1]}'}}}}]"
        path.write_text(f"{cluster}\ncontexts: [{{name: c, context: {{cluster: c, user: ''}}}}]\ncurrent-context: c\n")
        yield path


def test_a_cluster_that_does_not_answer_hides_no_job_of_this_machine(jobs: JobRunner, tmp_path: Path) -> None:
    with _silent_cluster(tmp_path) as config:
        jobs.environ["KUBECONFIG"] = str(config)
        assert _words(jobs, "", "logs") == list(JOBS)


def test_a_cluster_that_cannot_be_asked_is_no_line_in_what_the_user_types(jobs: JobRunner) -> None:
    for kubeconfig in ("/no/such/file", "/dev/full"):
        jobs.environ["KUBECONFIG"] = kubeconfig
        assert _words(jobs, "", "logs") == list(JOBS)


def _typed(jobs: JobRunner, command: list[str], setup: str, line: str, shown: str) -> None:
    """Type into an interactive shell on a terminal, and wait until the terminal shows the text."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(command[0], command, {**jobs.environ, "TERM": "dumb", "PS1": "$ ", "COLUMNS": "200"})
    try:
        os.write(terminal, f"{setup}; echo rea''dy\n".encode())
        _until(terminal, "ready")
        os.write(terminal, line.encode())
        _until(terminal, shown)
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)


def _until(terminal: int, text: str) -> None:
    seen = ""
    while text not in seen:
        seen += os.read(terminal, 4096).decode(errors="replace")


@pytest.mark.parametrize(
    ("command", "setup"),
    [
        (["bash", "--norc", "-i"], 'eval "$(pnas completion bash)"'),
        (["zsh", "-f", "-i"], 'autoload -Uz compinit; compinit -u -D; eval "$(pnas completion zsh)"'),
    ],
    ids=["bash", "zsh"],
)
def test_the_tab_key_completes_the_name_of_a_job(jobs: JobRunner, command: list[str], setup: str) -> None:
    _typed(jobs, command, setup, "echo x; pnas logs sec\t", "logs second-run")


def test_fish_completes_the_name_of_a_job_and_says_its_phase(jobs: JobRunner) -> None:
    ask = 'pnas completion fish | source; complete -C "pnas logs sec"; complete -C "pnas submit --backend v"'
    done = subprocess.run(["fish", "-c", ask], env=jobs.environ, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["second-run\tSucceeded", "volcano"]


def test_where_a_file_can_follow_files_are_completed(jobs: JobRunner) -> None:
    (jobs.home / "my-images").mkdir()
    ask = f'cd {jobs.home}; pnas completion fish | source; complete -C "pnas submit --data-path my-i"'
    done = subprocess.run(["fish", "-c", ask], env=jobs.environ, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("my-images/")
    _typed(
        jobs,
        ["bash", "--norc", "-i"],
        f'eval "$(pnas completion bash)"; cd {jobs.home}',
        "pnas submit --data-path my-i\t",
        "my-images/",
    )


def test_the_script_for_another_shell_is_refused(jobs: JobRunner) -> None:
    done = jobs.launch("completion", "tcsh")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert shutil.which("pnas", path=jobs.environ["PATH"])
