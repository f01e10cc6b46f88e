"""A trainer that is forked is the one that is started: the same lines, files and bits, and the same end."""

import os
import re
import resource
from pathlib import Path

import pytest

from tests.local import conftest
from tests.local.conftest import Finished, train
from tests.local.forked_trainer import run_trainer
from tests.local.resumable_runs import assert_same, recipe

OPTIONS = recipe("--npus", "2", "--epochs", "1", "--steps", "3", "--workers", "1", "--dropout", "0.3")


def _anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conftest, "PRELOADED", False)


def _lines(done: Finished) -> list[str]:
    """What it said, in an order that is no matter of time, and without measured numbers."""
    told = re.sub(r"\b(fps|seconds|lines|\w+_s|\w+_mib)=\S+", r"\1", done.stdout)
    return sorted(re.sub(r"#\d+", "#", line) for line in told.splitlines())


def test_it_says_and_leaves_the_same(tmp_path: Path, few_digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forked = train(tmp_path / "forked", *OPTIONS, data=few_digits)
    _anew(monkeypatch)
    started = train(tmp_path / "started", *OPTIONS, data=few_digits)
    assert (forked.code, started.code) == (0, 0), forked.stdout + started.stdout
    assert [line.replace("/forked/", "/started/") for line in _lines(forked)] == _lines(started)
    assert_same(started.run, forked.run, last_step=3)


def test_it_ends_the_same_for_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forked = train(tmp_path, "--batch-sise", "4")
    _anew(monkeypatch)
    started = train(tmp_path, "--batch-sise", "4")
    assert (forked.code, forked.stdout, forked.stderr) == (started.code, started.stdout, started.stderr)
    assert forked.code == 2


def test_one_that_does_not_end_is_killed_and_the_next_one_is_answered(tmp_path: Path, few_digits: Path) -> None:
    where = ("--data-path", str(few_digits), "--output", str(tmp_path), "--run-name", "long")
    words = (*where, *recipe("--epochs", "1000"))
    with pytest.raises(TimeoutError):
        run_trainer(words, environ=dict(os.environ), file_limit=resource.RLIM_INFINITY, timeout_s=1)
    assert train(tmp_path, "--help").code == 0
