"""The revision of the source that `provenance.json` names."""

import subprocess
from pathlib import Path

import pytest

import trainer
from trainer.records.provenance import source_revision


def test_the_revision_names_the_commit_and_whether_tracked_files_differ_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "trainer" / "__init__.py"
    source.parent.mkdir()
    source.touch()
    monkeypatch.setattr(trainer, "__file__", str(source))
    monkeypatch.setenv("PNAS_REVISION", "of the image")
    assert source_revision() == "of the image"

    def git(*words: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.com")
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *words], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    git("init", "-q")
    assert source_revision() == "of the image"
    git("add", ".")
    git("commit", "-q", "-m", "First")
    commit = git("rev-parse", "HEAD")
    (tmp_path / "untracked").touch()
    assert source_revision() == commit
    source.write_text("changed\n")
    assert source_revision() == f"{commit}+changes"
