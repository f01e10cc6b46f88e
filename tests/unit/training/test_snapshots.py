"""Snapshots in memory: torn ones are never used, foreign ones are refused, and each is a whole checkpoint.

`PNAS_TEST_TORN_PAGES=0` tears every page of the files instead of a sample; the seed is printed.
"""

import multiprocessing
import os
import random
import shutil
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from trainer.checkpoint.manifest import Blob, CheckpointManifest
from trainer.checkpoint.reading import list_checkpoints, newest_valid
from trainer.checkpoint.saver import Saver
from trainer.checkpoint.snapshot import (
    SHARED_MEMORY,
    SnapshotOrigin,
    SnapshotPace,
    code_hash,
    save_snapshot,
    shortage,
    snapshot_folder,
    valid_snapshots,
    write_snapshot,
)
from trainer.checkpoint.writing import clear_leftovers, write_checkpoint
from trainer.shared import container
from trainer.shared.durations import Interval

PAGE = 4096
PAGES = int(os.environ.get("PNAS_TEST_TORN_PAGES", "24"))
"""Pages of each file to tear; 0 for all."""
ORIGIN = SnapshotOrigin("run", 2, "code")


def content(**changes: Any) -> dict[str, Any]:
    values = {"name": "run", "world_size": 2, "code": "code", **changes}
    return {
        "run": {"name": values["name"]},
        "arithmetic": {"world_size": values["world_size"]},
        "code": values["code"],
    }


def blobs(seed: int, pages: int = 64) -> dict[str, Blob]:
    data = np.random.default_rng(seed).integers(0, 256, PAGE * pages, dtype=np.uint8)
    half = len(data) // 2
    return {
        "model.w": Blob("F32", (half // 4,), data[:half].data),
        "ranks.rng": Blob("U8", (2, half // 2), data[half:].data),
    }


def newest(folder: Path) -> CheckpointManifest:
    """Return the newest snapshot; each must be valid."""
    return valid_snapshots(folder, ORIGIN, on_refused=lambda path, why: pytest.fail(f"{path}: {why}"))[0]


def valid(folder: Path) -> list[int]:
    """Return the steps of the snapshots that can be used."""
    found = valid_snapshots(folder, ORIGIN, on_refused=lambda _path, _reason: None)
    return [int(manifest.path.name.removeprefix("step-")) for manifest in found]


def test_a_snapshot_is_a_checkpoint_and_two_of_them_stay(tmp_path: Path) -> None:
    (memory := tmp_path / "memory").mkdir()
    (disk := tmp_path / "disk").mkdir()
    for step in (10, 20, 30):
        write_snapshot(memory, step, blobs(step), content())
    assert valid(memory) == [30, 20]
    direct = write_checkpoint(disk, 30, blobs(30), content())
    state = (direct.path / "state.safetensors").read_bytes()
    shutil.rmtree(direct.path)
    saved = save_snapshot(newest(memory), disk)
    assert (saved.path / "state.safetensors").read_bytes() == state
    assert (saved.content, saved.tensors) == (direct.content, direct.tensors)


def test_a_snapshot_that_is_torn_at_any_page_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed = random.SystemRandom().randrange(2**32)
    draw = random.Random(seed)
    write_snapshot(tmp_path, 10, blobs(10), content())
    newer = write_snapshot(tmp_path, 20, blobs(20), content())
    torn = refused = 0
    for file in (newer.path / "state.safetensors", newer.path / "manifest.json"):
        whole = file.read_bytes()
        pages = list(range(0, len(whole), PAGE))
        for begin in draw.sample(pages, min(PAGES or len(pages), len(pages))):
            old = whole[begin : begin + PAGE]
            # The page of an older snapshot, of fresh memory, and a single bit.
            flipped = bytearray(old)
            flipped[draw.randrange(len(old))] ^= 1 << draw.randrange(8)
            for page in (draw.randbytes(len(old)), bytes(len(old)), bytes(flipped)):
                file.write_bytes(whole[:begin] + page + whole[begin + PAGE :])
                torn, refused = torn + 1, refused + (valid(tmp_path) == [10])
        for length in draw.sample(range(len(whole)), 8):
            file.write_bytes(whole[:length])
            torn, refused = torn + 1, refused + (valid(tmp_path) == [10])
        file.write_bytes(whole)
    assert valid(tmp_path) == [20, 10]
    with capsys.disabled():
        sys.stdout.write(f"\n{torn} torn snapshots, {refused} refused, seed {seed}\n")
    assert refused == torn


def _write_for_ever(folder: str, ready: Any) -> None:
    for step in range(1, 10**6):
        write_snapshot(Path(folder), step, blobs(step), content())
        ready.set()


def test_a_writer_that_is_killed_at_any_moment_leaves_a_whole_snapshot(tmp_path: Path) -> None:
    context, draw = multiprocessing.get_context("fork"), random.Random(0)
    for _ in range(5):
        ready = context.Event()
        writer = context.Process(target=_write_for_ever, args=(str(tmp_path), ready))
        writer.start()
        assert ready.wait(60)
        writer.join(draw.uniform(0, 0.05))
        writer.kill()
        writer.join()
        writer.close()
        names = list_checkpoints(tmp_path)
        assert valid(tmp_path), names
        clear_leftovers(tmp_path)
        # A name belongs to a whole snapshot only.
        assert len(valid(tmp_path)) == len(names) == len(list(tmp_path.iterdir()))
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": "other"}, "it is a snapshot of the run other, not of run"),
        ({"world_size": 8}, "it is a snapshot of 8 ranks, not of 2"),
        ({"code": "old"}, "it is a snapshot of another version of this program (old)"),
    ],
)
def test_a_foreign_snapshot_is_refused_with_one_line(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    write_snapshot(tmp_path, 10, blobs(1), content())
    foreign = write_snapshot(tmp_path, 20, blobs(2), content(**changes))
    refused: list[tuple[Path, str]] = []
    (manifest,) = valid_snapshots(tmp_path, ORIGIN, on_refused=lambda *why: refused.append(why))
    assert manifest.path.name == "step-000000010"
    assert refused == [(foreign.path, reason)]


def test_the_folder_goes_with_its_owner_and_folders_of_killed_owners_go_too(tmp_path: Path) -> None:
    (left := tmp_path / "pnas-snapshots-left").mkdir()
    (left / "owner").touch()
    (begun := tmp_path / "pnas-snapshots-begun").mkdir()
    (foreign := tmp_path / "other").mkdir()
    with snapshot_folder(tmp_path) as folder:
        assert sorted(tmp_path.iterdir()) == sorted([folder, begun, foreign]), "one that is being made stays"
        with snapshot_folder(tmp_path) as second:
            assert folder.is_dir()
            assert folder != second
        write_snapshot(folder, 1, blobs(1), content())
    assert sorted(tmp_path.iterdir()) == [foreign, begun]


def test_the_runs_own_snapshots_count_as_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a crash they are still there, and the next attempt's take their place."""
    state = 2**20

    def used() -> int:
        return sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())

    def room(_folder: Path) -> Any:
        return SimpleNamespace(f_bavail=7 * state - used(), f_frsize=1)

    monkeypatch.setattr("trainer.checkpoint.snapshot.os", SimpleNamespace(statvfs=room))
    monkeypatch.setattr("trainer.checkpoint.snapshot.free_memory_bytes", lambda: 8 * state - used())
    assert shortage(tmp_path, state) is None
    for step in (1, 2):
        write_snapshot(tmp_path, step, {"w": Blob("U8", (state,), memoryview(bytes(state)))}, content())
    assert shortage(tmp_path, state) is None
    assert shortage(tmp_path, 2 * state) is not None


def test_too_little_memory_is_one_line_with_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.checkpoint.snapshot.free_memory_bytes", lambda: 2**30)
    assert shortage(SHARED_MEMORY, 1000) is None
    assert shortage(SHARED_MEMORY, 2**28) == "they need 2,048 MiB of free memory, and 1,024 are free: allow more"
    words = shortage(SHARED_MEMORY / ".", 2**40)
    assert words is not None
    assert words.startswith("three of 1,048,576 MiB need 6,291,456 MiB in /dev")
    assert words.endswith(f" free: {container.MORE_SHM}")


def test_a_pace_by_the_cost_spends_one_percent_at_ends_of_windows() -> None:
    now = 0.0
    pace = SnapshotPace(None, processors=4, clock=lambda: now)
    assert not pace.is_due(5, window_ends=True)
    now = 10.0
    assert not pace.is_due(6, window_ends=False)
    assert pace.is_due(7, window_ends=True)
    pace.count(blocked_s=0.3, processor_s=2.0)  # 0.8 s of the loop's time
    now = 89.9
    assert not pace.is_due(8, window_ends=True)
    now = 90.0
    assert pace.is_due(9, window_ends=True)
    pace.count(blocked_s=0.001, processor_s=0.004)
    now = 99.9
    assert not pace.is_due(10, window_ends=True), "a restart takes as long"


def test_a_pace_that_the_user_sets() -> None:
    now = 0.0
    steps = SnapshotPace(Interval.parse("5"), processors=1, clock=lambda: now)
    assert [step for step in range(1, 14) if steps.is_due(step, window_ends=False)] == [4, 8, 12]
    steps.start_at(14)
    assert [step for step in range(14, 22) if steps.is_due(step, window_ends=False)] == [16, 20]
    seconds = SnapshotPace(Interval.parse("30s"), processors=1, clock=lambda: now)
    now = 29.9
    assert not seconds.is_due(1, window_ends=True)
    now = 30.0
    assert seconds.is_due(2, window_ends=False)


def saver(folder: Path, memory: Path, *, snapshot_every: str = "2") -> Saver:
    return Saver(
        folder,
        every=Interval.parse("10"),
        keep=3,
        pin_memory=False,
        evaluated="model.",
        description={},
        snapshots=memory,
        pace=SnapshotPace(Interval.parse(snapshot_every), processors=1),
    )


def steps_in(folder: Path) -> list[int]:
    newest_valid(folder, on_refused=lambda path, why: pytest.fail(f"{path}: {why}"))
    return [int(path.name.removeprefix("step-")) for path in list_checkpoints(folder)]


def test_a_saver_takes_snapshots_and_each_checkpoint_is_one_too(tmp_path: Path) -> None:
    (memory := tmp_path / "memory").mkdir()
    (disk := tmp_path / "disk").mkdir()
    own, weight = saver(disk, memory), torch.ones(5)
    for step in (2, 4):
        own.snapshot(step, {"model.w": weight.fill_(step)}, content())
        weight.fill_(-1)
        own.wait()
    assert (steps_in(memory), steps_in(disk)) == ([4, 2], [])
    own.save(5, {"model.w": weight.fill_(5)}, content(), sync=lambda: None)
    assert own.wait() is None
    assert (steps_in(memory), steps_in(disk)) == ([5, 4], [5])
    assert (newest(memory).path / "state.safetensors").read_bytes().endswith(torch.full((5,), 5.0).numpy().tobytes())
    assert not own.is_snapshot_due(5, window_ends=True)
    assert own.is_snapshot_due(6, window_ends=False)
    assert not own.is_due(9)
    own.save_soon()
    assert own.is_due(9), "a state that lies only in memory"
    assert not own.is_due(9)
    own.drop_snapshots()
    assert steps_in(memory) == []


def test_a_slow_disk_delays_no_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (memory := tmp_path / "memory").mkdir()
    (disk := tmp_path / "disk").mkdir()
    own, weight, is_fast, has_memory = saver(disk, memory), torch.ones(5), threading.Event(), threading.Event()
    has_memory.set()

    def write_slowly(*arguments: Any, **options: Any) -> CheckpointManifest:
        assert is_fast.wait(60)
        return write_checkpoint(*arguments, **options)

    def write_when_allowed(*arguments: Any) -> CheckpointManifest:
        assert has_memory.wait(60)
        return write_snapshot(*arguments)

    monkeypatch.setattr("trainer.checkpoint.saver.write_checkpoint", write_slowly)
    monkeypatch.setattr("trainer.checkpoint.saver.write_snapshot", write_when_allowed)
    own.save(10, {"model.w": weight.fill_(10)}, content(), weights=("last",), sync=lambda: None)
    for step in range(11, 21):
        own.wait_for_snapshot()
        if own.is_snapshot_due(step, window_ends=False):
            own.snapshot(step, {"model.w": weight.fill_(step)}, content())
    own.wait_for_snapshot()
    assert (steps_in(memory), steps_in(disk)) == ([20, 18], [])
    assert not own.is_due(20)
    assert capsys.readouterr().out.count("checkpoint of step 20 is late") == 1
    has_memory.clear()
    own.snapshot(22, {"model.w": weight.fill_(22)}, content())
    is_fast.set()
    for thread in threading.enumerate():
        if thread.name == "checkpoint":
            thread.join()
    assert steps_in(disk) == [10]
    assert not own.is_snapshot_due(30, window_ends=False), "the copy of step 22 is still needed"
    has_memory.set()
    assert own.wait() is None
    assert steps_in(memory) == [22, 20]
    # The state of step 10, although its snapshot is gone and the copy has been used again.
    for file in (disk / "step-000000010/state.safetensors", disk / "last.safetensors"):
        (saved,) = load_file(file).values()
        assert saved.tolist() == [10.0] * 5
    assert own.is_due(23)


@pytest.mark.parametrize("steps", [2, 3, 4, 7, 8, 12])
@pytest.mark.parametrize("writing_steps", [None, 0, 1, 2, 3])
def test_a_crash_at_any_step_repeats_at_most_the_steps_that_the_user_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, writing_steps: int | None
) -> None:
    """A snapshot takes `writing_steps` steps to write, or ends only when it is waited for.

    As the training loop does, ask for what is due one step ahead. A step counts once its figures are written.
    """
    (memory := tmp_path / "memory").mkdir()
    is_read = threading.Semaphore(0)
    waits = 0

    class Awaited(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            nonlocal waits
            if not self.is_set():
                waits += 1
                is_read.release()
            return super().wait(timeout)

    def write(*arguments: Any) -> CheckpointManifest:
        assert is_read.acquire(timeout=60)
        return write_snapshot(*arguments)

    monkeypatch.setattr("trainer.checkpoint.saver.Event", Awaited)
    monkeypatch.setattr("trainer.checkpoint.saver.write_snapshot", write)
    own, is_due, taken = saver(tmp_path / "disk", memory, snapshot_every=str(steps)), False, []
    for done in range(1, 41):
        own.bound_repetition(done)
        assert done - max(steps_in(memory), default=0) <= steps
        will_be_due = own.is_snapshot_due(done + 1, window_ends=False)
        if is_due:
            own.snapshot(done, {"model.w": torch.ones(5)}, content())
            taken.append(done)
        if taken and writing_steps is not None and done == taken[-1] + writing_steps:
            own.wait_for_snapshot()
            waits -= 1
        is_due = will_be_due
    if writing_steps is not None and writing_steps <= steps // 4:
        interval = steps - steps // 4
        assert (waits, taken) == (0, list(range(interval, 41, interval))), "the loop never waits"
    own.wait_for_snapshot()  # no thread outlives the test


def test_memory_that_is_full_costs_snapshots_and_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (memory := tmp_path / "memory").mkdir()
    (disk := tmp_path / "disk").mkdir()
    own = saver(disk, memory)

    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("trainer.checkpoint.saver.write_snapshot", full)
        for step in (2, 4):
            own.snapshot(step, {"model.w": torch.ones(5)}, content())
        own.save(5, {"model.w": torch.ones(5)}, content(), sync=lambda: None)
        assert own.wait() is None
    assert capsys.readouterr().out.count("No space left on device; the snapshot of step 2 is left out") == 1
    assert steps_in(disk) == [5]
    own.snapshot(6, {"model.w": torch.ones(5)}, content())
    own.wait()
    assert steps_in(memory) == [6]


def test_the_hash_of_the_program_follows_its_source() -> None:
    assert code_hash() == code_hash()
    assert len(code_hash()) == 16
