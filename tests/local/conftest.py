"""Real data and real processes for the tests of whole runs."""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.local.forked_trainer import run_forked_trainer
from tests.local.job_runner import JobRunner
from tests.local.supervisor_process import SupervisorRunner

SMALL = {
    "--device": os.environ.get("PNAS_TEST_DEVICE", "cpu"),
    "--model": "pnasnet5tiny",
    "--image-size": "32",
    "--batch-size": "32",
    "--workers": "0",
    "--aux": "none",
    "--threads": "1",
    "--restarts": "0",
}
"""A network and images with which one step takes tens of milliseconds on one core."""
FORK = SMALL["--device"] == "cpu"
"""Whether `train` forks. For a real NPU torch imports a runtime, and it is unknown whether that survives a fork."""
if SMALL["--device"] != "cpu":
    SMALL |= {"--precision": "fp32", "--npus": "1"}


def small_options(*options: str) -> tuple[str, ...]:
    """Return `options`, and the entries of SMALL that they do not set."""
    return (*options, *(word for flag, value in SMALL.items() if flag not in options for word in (flag, value)))


@dataclass(frozen=True)
class TrainerResult:
    """A trainer that has ended: its exit code, its output and its run folder."""

    code: int
    stdout: str
    stderr: str
    run: Path

    def events(self, event: str, rank: int = 0) -> list[dict[str, str]]:
        """Return the logfmt values of each line of the kind `event` that one rank printed, in order."""
        tag = f"[rank {rank} "
        texts = (line.partition("] ")[2] for line in self.stdout.splitlines() if line.startswith(tag))
        return [
            dict(pair.partition("=")[::2] for pair in text.split()[1:])
            for text in texts
            if text.startswith(event + " ")
        ]

    def metrics(self, kind: str) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl of one kind, without their times."""
        lines = map(json.loads, (self.run / "metrics.jsonl").read_text().splitlines())
        return [{key: line[key] for key in line if key != "time"} for line in lines if line["kind"] == kind]


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with handwritten digits as JPEGs in the ImageNet layout: 1,437 to train on, 360 to validate."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    subprocess.run([sys.executable, "-m", "trainer", "data", "digits", "--to", str(folder)], check=True)
    return folder


@pytest.fixture(scope="session")
def few_digits(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the same training images and 78 to validate, for tests that evaluate often."""
    folder = tmp_path_factory.mktemp("data") / "few-digits"
    shutil.copytree(digits / "train", folder / "train", copy_function=os.link)
    for label in (digits / "val").iterdir():
        (folder / "val" / label.name).mkdir(parents=True)
        for image in sorted(label.iterdir())[::5]:
            os.link(image, folder / "val" / label.name / image.name)
    return folder


@pytest.fixture(scope="session", autouse=True)
def private_caches(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the indexes of the tests' images out of the user's cache."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def supervisors(tmp_path: Path) -> Iterator[SupervisorRunner]:
    """Start supervisors for a test, and end the remaining ones."""
    runner = SupervisorRunner(tmp_path)
    yield runner
    runner.stop()


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobRunner:
    """Start local jobs and launchers in the test's folder."""
    monkeypatch.chdir(tmp_path)
    return JobRunner(tmp_path)


def train(
    output: Path,
    *options: str,
    data: Path | None = None,
    name: str = "run",
    environ: dict[str, str] | None = None,
    file_limit: int = resource.RLIM_INFINITY,
    fork: bool = FORK,
    prefix: Sequence[str] = (),
    timeout_s: float = 600,
) -> TrainerResult:
    """Run `python -m trainer` to its end.

    Args:
        file_limit: bytes to which each file may grow; a small number acts as a disk that fills up.
        fork: fork the trainer from a process that has imported torch, instead of starting a new interpreter.
        prefix: a command that starts the trainer's, such as `unshare`; it starts a new interpreter.
    """
    data_options = () if data is None else ("--data-path", str(data))
    arguments = (*data_options, "--output", str(output), "--run-name", name, *options)
    environ = {**os.environ, **(environ or {})}
    if fork and not prefix:
        ended = run_forked_trainer(arguments, environ=environ, file_limit=file_limit, timeout_s=timeout_s)
    else:
        ended = subprocess.run(
            (*prefix, sys.executable, "-m", "trainer", *arguments),
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
            env=environ,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit)),
        )
    return TrainerResult(ended.returncode, ended.stdout, ended.stderr, output / name)
