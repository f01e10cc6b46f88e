"""A forked trainer behaves as a started one: the same lines, files and bits, and the same exit code."""

import os
import re
import resource
from pathlib import Path

import pytest

from tests.local.conftest import TrainerResult, train
from tests.local.forked_trainer import run_forked_trainer
from tests.local.resumable_runs import assert_same_run, recipe

OPTIONS = recipe("--npus", "2", "--epochs", "1", "--steps", "3", "--workers", "1", "--dropout", "0.3")


def _comparable_lines(result: TrainerResult) -> list[str]:
    """Return the output without what differs from run to run: the order of the lines, their numbers, measurements."""
    text = re.sub(r"\b(fps|seconds|time|started|ended|lines|\w+_s|\w+_mib)=\S+", r"\1", result.stdout)
    lines = [re.sub(r"#\d+", "#", line) for line in text.splitlines()]
    return sorted(line for line in lines if "] progress " not in line and "] time " not in line)


def test_it_prints_and_leaves_the_same(tmp_path: Path, few_digits: Path) -> None:
    forked = train(tmp_path / "forked", *OPTIONS, data=few_digits, fork=True)
    started = train(tmp_path / "started", *OPTIONS, data=few_digits, fork=False)
    assert (forked.code, started.code) == (0, 0), forked.stdout + started.stdout
    forked_lines = [line.replace("/forked/", "/started/") for line in _comparable_lines(forked)]
    assert forked_lines == _comparable_lines(started)
    assert_same_run(started.run, forked.run, last_step=3)


def test_it_ends_the_same_after_a_mistake(tmp_path: Path) -> None:
    forked = train(tmp_path, "--batch-sise", "4", fork=True)
    started = train(tmp_path, "--batch-sise", "4", fork=False)
    assert (forked.code, forked.stdout, forked.stderr) == (started.code, started.stdout, started.stderr)
    assert forked.code == 2


def test_a_trainer_that_takes_too_long_is_killed_and_the_next_one_runs(tmp_path: Path, few_digits: Path) -> None:
    folders = ("--data-path", str(few_digits), "--output", str(tmp_path), "--run-name", "long")
    options = (*folders, *recipe("--epochs", "1000"))
    with pytest.raises(TimeoutError):
        run_forked_trainer(options, environ=dict(os.environ), file_limit=resource.RLIM_INFINITY, timeout_s=1)
    assert train(tmp_path, "--help", fork=True).code == 0
