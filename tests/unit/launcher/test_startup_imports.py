"""A command imports only the libraries that it needs, because most of a command's start is imports."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.errors import ExitCode
from launcher.local import records

SUBMITTING = {"pydantic", "jinja2", "yaml", "launcher.settings", "launcher.manifests", "launcher.cluster.refusals"}
CLUSTER = {"kubernetes", "pycurl", "urllib3"}
HEAVY = {"torch", "numpy", "rich"}
RENDER = ("render", "--npus", "8", "--nodes", "2", "--image", "registry.example/pnas:0.1.0", "--backend", "volcano")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home directory with one finished local job, and without a kubeconfig."""
    folder = tmp_path / "pnas" / "jobs" / "a"
    folder.mkdir(parents=True)
    job = {"name": "a", "command": ["x"], "cwd": str(tmp_path), "spec": {}, "output": str(tmp_path / "out")}
    records.write_record(folder / records.JOB, "LocalJob", {**job, "created": 1.0, "host": socket.gethostname()})
    records.write_record(folder / records.EXIT, "exit", {"returncode": 0, "started": 1.0, "ended": 2.0})
    (folder / records.CONSOLE).write_text("the only line\n")
    return tmp_path


def imported(home: Path, *words: str, **environ: str) -> set[str]:
    """Run a command of the launcher, and return the names of the modules that it imported."""
    names = ("PATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH")
    inherited = {name: os.environ[name] for name in names if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "launcher", *words],
        env={**inherited, "HOME": str(home), "XDG_STATE_HOME": str(home), **environ},
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stdout, "the command printed nothing"
    lines = (line.rpartition("|") for line in done.stderr.splitlines() if line.startswith("import time:"))
    return {name.strip() for _, _, name in lines}


@pytest.mark.parametrize(
    "words",
    [["list"], ["top"], ["status", "a"], ["explain", "a"], ["logs", "a"], ["wait", "a"], ["delete", "a"]],
    ids=str,
)
def test_a_command_that_reads_or_stops_jobs_imports_nothing_of_submitting(home: Path, words: list[str]) -> None:
    modules = imported(home, *words)
    assert "launcher.local.records" in modules, "the command did not look for jobs"
    assert not modules & (SUBMITTING | CLUSTER | HEAVY)


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]], ids=str)
def test_the_first_page_imports_no_library(home: Path, words: list[str]) -> None:
    assert not imported(home, *words) & (SUBMITTING | CLUSTER | HEAVY | {"cyclopts", "attrs"})


@pytest.mark.parametrize("words", [[], ["list"]], ids=str)
def test_a_fault_while_the_launcher_is_imported_is_not_a_failed_job(tmp_path: Path, words: list[str]) -> None:
    for name in ("cyclopts", "shutil"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('broken')\n")
    command = [sys.executable, "-m", "launcher", *words]
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (ExitCode.INTERNAL, "RuntimeError: broken")


@pytest.mark.parametrize("words", [["list"], ["config", "show"], ["render", "--image", "x"]], ids=" ".join)
def test_a_user_without_an_entry_and_without_home_has_every_command(words: list[str]) -> None:
    """No kubeconfig is found there, and no job."""
    program = "import pwd; pwd.getpwuid = lambda uid: {}[uid]\nfrom launcher.__main__ import main\nmain()"
    environ = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_STATE_HOME")}
    done = subprocess.run(
        [sys.executable, "-c", program, *words], env=environ, capture_output=True, text=True, check=False
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr


def test_a_working_folder_that_was_removed_is_named(tmp_path: Path) -> None:
    words = ("submit", "--backend", "local", "--dry-run", "client")
    program = "import os; os.rmdir(os.getcwd())\nfrom launcher.__main__ import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    text = "error: the working folder: No such file or directory; a running job goes on\n"
    assert (done.returncode, done.stderr) == (ExitCode.IO_ERROR, text)


def test_render_imports_nothing_that_speaks_to_a_cluster(home: Path) -> None:
    modules = imported(home, *RENDER)
    assert "launcher.manifests.render" in modules
    assert not modules & (CLUSTER | HEAVY)
    assert not {name for name in modules if name.startswith("launcher.cluster.")}


def test_the_cluster_libraries_are_imported_only_to_connect(home: Path) -> None:
    assert not imported(home, "config", "show") & (CLUSTER | HEAVY)
    for split in ("train", "val"):
        (home / "data" / split / "zero").mkdir(parents=True)
    local = ("submit", "--backend", "local", "--npus", "1", "--dry-run", "client", "--data-path", str(home / "data"))
    assert not imported(home, *local) & (CLUSTER | HEAVY)


def test_a_list_of_a_clusters_jobs_imports_nothing_of_submitting_and_no_kubernetes_client(home: Path) -> None:
    kubeconfig = home / "kubeconfig"
    cluster = {"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}  # no server listens there
    context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
    users = [{"name": "u", "user": {}}]
    kubeconfig.write_text(
        json.dumps({"clusters": [cluster], "contexts": [context], "users": users, "current-context": "x"})
    )
    modules = imported(home, "list", KUBECONFIG=str(kubeconfig))
    assert modules >= {"yaml", "urllib3"}
    # Only the old `auth-provider` logins need the official client.
    assert not modules & ((SUBMITTING - {"yaml"}) | HEAVY | {"pycurl", "kubernetes"})
