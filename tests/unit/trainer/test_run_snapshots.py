"""The process that starts the workers owns the memory of their snapshots, and saves the last one when it must end."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from trainer.checkpoint.manifest import Blob
from trainer.checkpoint.reading import verify_checkpoint
from trainer.checkpoint.snapshot import SHARED_MEMORY, code_hash, write_snapshot
from trainer.checkpoint.writing import UNSHARED, CheckpointWriter, write_checkpoint
from trainer.run import snapshots
from trainer.shared.config import ConfigError, TrainConfig, resolve_train_config
from trainer.shared.config.layers import Layer
from trainer.shared.errors import TrainerError

WORLD_SIZE = 2


def write(memory: Path, step: int, *, run: str = "run", world_size: int = WORLD_SIZE) -> None:
    content: Mapping[str, Any] = {
        "run": {"name": run},
        "arithmetic": {"world_size": world_size},
        "code": code_hash(),
    }
    write_snapshot(memory, step, {"model.w": Blob("U8", (4,), memoryview(b"abcd"))}, content)


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    """Return a folder in place of one in memory."""
    (folder := tmp_path / "memory").mkdir()
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run's folder with its records."""
    (folder := tmp_path / "run").mkdir()
    (folder / "metrics.jsonl").write_text("{}\n")
    return folder


def save(memory: Path | None, run: Path, writer: CheckpointWriter = UNSHARED) -> list[str]:
    """Save the newest snapshot; return the lines for the user."""
    lines: list[str] = []
    snapshots.save_newest_snapshot(memory, run, world_size=WORLD_SIZE, writer=writer, on_note=lines.append)
    return lines


@pytest.mark.parametrize(
    ("options", "has_memory"),
    [
        ({}, True),
        ({"snapshot_every": "5"}, True),
        ({"snapshot_every": "30s"}, True),
        ({"snapshot_every": "never"}, False),
        ({"snapshot_every": "0"}, False),
        ({"mode": "eval"}, False),
        ({"mode": "performance"}, False),
    ],
)
def test_memory_is_held_for_a_training_with_snapshots_only(options: dict[str, Any], *, has_memory: bool) -> None:
    config = TrainConfig(**options, **({"weights": "w.safetensors"} if options.get("mode") == "eval" else {}))
    with snapshots.hold_memory(config, pytest.fail) as folder:
        assert (folder is not None) == has_memory
        assert folder is None or (folder.parent, folder.is_dir()) == (SHARED_MEMORY, True)
    assert folder is None or not folder.exists()


def test_memory_that_cannot_be_written_is_one_line_and_no_snapshots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.run.snapshots.snapshot_folder", lambda: _missing(tmp_path))
    lines: list[str] = []
    with snapshots.hold_memory(TrainConfig(), lines.append) as folder:
        assert folder is None
    reason = "so that a crash costs the steps since the last checkpoint: /dev/shm: No such file or directory"
    assert lines == [f"no snapshots, {reason}"]


def _missing(folder: Path) -> Any:
    from trainer.checkpoint.snapshot import snapshot_folder  # the name above is replaced

    return snapshot_folder(folder / "missing")


@pytest.mark.parametrize("words", ["-3", "0s", "soon", "1.5", "always"])
def test_a_wrong_interval_is_refused_with_what_to_write(words: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        resolve_train_config([Layer("flag", {"snapshot_every": words})])
    assert str(refusal.value) == (
        f"--snapshot-every {words}: write auto, never, a number of steps (50) or a duration with its unit (30s)"
    )


def test_the_last_snapshot_is_saved_if_it_is_newer_than_the_disk(memory: Path, run: Path) -> None:
    assert save(None, run) == save(memory, run) == []
    write(memory, 10)
    write(memory, 20)
    path = run / "checkpoints/step-000000020"
    assert save(memory, run) == [f"saved the last snapshot as {path}"]
    assert verify_checkpoint(path).content["run"] == {"name": "run"}
    assert save(memory, run) == []
    write_checkpoint(run / "checkpoints", 30, {}, {})
    write(memory, 25)
    assert save(memory, run) == []


def test_a_torn_or_foreign_snapshot_is_not_saved(memory: Path, run: Path) -> None:
    write(memory, 10)
    write(memory, 20)
    (memory / "step-000000020/state.safetensors").write_bytes(b"torn")
    (memory / ".writing-1").mkdir()
    torn, saved = save(memory, run)
    assert torn.startswith("snapshot step-000000020 refused: state.safetensors has 4 bytes")
    assert saved.endswith("checkpoints/step-000000010")
    assert not (memory / ".writing-1").exists()
    write(memory, 40, run="other")
    write(memory, 50, world_size=8)
    assert save(memory, run) == [
        "snapshot step-000000050 refused: it is a snapshot of 8 ranks, not of 2",
        "snapshot step-000000040 refused: it is a snapshot of the run other, not of run",
    ]


def test_a_folder_that_another_process_owns_by_now_gets_no_snapshot(memory: Path, run: Path) -> None:
    def lost() -> None:
        raise TrainerError("another process works in this folder")

    write(memory, 10)
    (line,) = save(memory, run, CheckpointWriter(1, lost))
    assert line.startswith("the last snapshot cannot be saved: another process works in this folder; ")
    assert not list((run / "checkpoints").glob("step-*"))
