"""A run that goes back to an earlier checkpoint changes no folder that another process has taken."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from trainer.checkpoint.manifest import BadCheckpointError, Blob, CheckpointManifest
from trainer.checkpoint.writing import CheckpointWriter, write_checkpoint
from trainer.records.lease import LOCK_FILE, Lease, Owner
from trainer.shared.errors import FolderTakenError
from trainer.training.roll_back import leave_newest
from trainer.training.steps import Training


def test_a_roll_back_in_a_folder_that_was_taken_meanwhile_moves_no_checkpoint(tmp_path: Path) -> None:
    blobs = {"w": Blob("U8", (3,), memoryview(b"abc"))}
    for step in (1, 2):
        write_checkpoint(tmp_path / "checkpoints", step, blobs, {})
    (tmp_path / LOCK_FILE).write_text("old")
    lease = Lease(tmp_path, "old")
    (tmp_path / LOCK_FILE).write_text(json.dumps(vars(Owner.this_process(["new"]))))
    before = sorted(tmp_path.rglob("*"))

    def first_step(manifest: CheckpointManifest) -> None:
        if manifest.path.name != "step-000000001":
            raise BadCheckpointError("later")

    training = cast("Training", SimpleNamespace(rank=0))
    with pytest.raises(FolderTakenError):
        leave_newest(training, tmp_path / "checkpoints", [first_step], writer=CheckpointWriter(1, lease.prove))
    assert sorted(tmp_path.rglob("*")) == before
