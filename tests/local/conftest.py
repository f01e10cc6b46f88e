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

from tests.local.forked_trainer import run_trainer
from tests.local.supervisor_process import Node

SMALL = {
    "--device": os.environ.get("PNAS_TEST_DEVICE", "cpu"),
    "--model": "pnasnet5tiny",
    "--image-size": "32",
    "--batch-size": "32",
    "--workers": "0",
    "--aux": "none",
    "--threads": "1",
}
"""A network and images that a step of takes tens of milliseconds on one core."""
PRELOADED = SMALL["--device"] == "cpu"
"""A real NPU's runtime is imported with torch, and nobody knows whether it may be forked then."""
if SMALL["--device"] != "cpu":
    SMALL |= {"--precision": "fp32", "--npus": "1"}


def small(*options: str) -> tuple[str, ...]:
    """`options`, and those of SMALL that they do not set themselves."""
    return (*options, *(word for flag, value in SMALL.items() if flag not in options for word in (flag, value)))


@dataclass(frozen=True)
class Finished:
    """A trainer that has ended, and what it left."""

    code: int
    stdout: str
    stderr: str
    run: Path

    def events(self, event: str, rank: int = 0) -> list[dict[str, str]]:
        """The logfmt values of the lines of one kind that one rank printed, in order."""
        tag = f"[rank {rank} "
        texts = (line.partition("] ")[2] for line in self.stdout.splitlines() if line.startswith(tag))
        return [
            dict(pair.partition("=")[::2] for pair in text.split()[1:])
            for text in texts
            if text.startswith(event + " ")
        ]

    def metrics(self, kind: str) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl of one kind."""
        lines = map(json.loads, (self.run / "metrics.jsonl").read_text().splitlines())
        return [line for line in lines if line["kind"] == kind]


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The handwritten digits as JPEGs in the ImageNet layout: 1,437 to train on, 360 to validate."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    subprocess.run([sys.executable, "-m", "trainer", "data", "digits", "--to", str(folder)], check=True)
    return folder


@pytest.fixture(scope="session")
def few_digits(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same to train on, and 78 to validate: for tests that train often and are about something else."""
    folder = tmp_path_factory.mktemp("data") / "few-digits"
    shutil.copytree(digits / "train", folder / "train", copy_function=os.link)
    for label in (digits / "val").iterdir():
        (folder / "val" / label.name).mkdir(parents=True)
        for image in sorted(label.iterdir())[::5]:
            os.link(image, folder / "val" / label.name / image.name)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _private_caches(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """Where a test of the supervisor starts some."""
    node = Node(tmp_path)
    yield node
    node.stop()


def train(
    output: Path,
    *options: str,
    data: Path | None = None,
    name: str = "run",
    environ: dict[str, str] | None = None,
    file_limit: int = resource.RLIM_INFINITY,
) -> Finished:
    """Run `python -m trainer` to its end; no file may grow beyond `file_limit` bytes, as on a disk that fills up."""
    where = () if data is None else ("--data-path", str(data))
    words = (*where, "--output", str(output), "--run-name", name, *options)
    start = run_trainer if PRELOADED else _run_anew
    done = start(words, environ={**os.environ, **(environ or {})}, file_limit=file_limit, timeout_s=600)
    return Finished(done.returncode, done.stdout, done.stderr, output / name)


def _run_anew(
    options: Sequence[str], *, environ: dict[str, str], file_limit: int, timeout_s: float
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        (sys.executable, "-m", "trainer", *options),
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
        env=environ,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit)),
    )
