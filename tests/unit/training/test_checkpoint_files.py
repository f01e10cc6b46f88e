"""A checkpoint is whole or refused: after a cut, a flipped bit or a kill, the newest valid one is found."""

import errno
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import UserDict
from collections.abc import Callable, KeysView
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from trainer.checkpoint.manifest import BadCheckpointError, Blob, CheckpointManifest
from trainer.checkpoint.reading import list_checkpoints, newest_valid, read_manifest, verify_checkpoint
from trainer.checkpoint.writing import prune_checkpoints, set_newer_aside, write_checkpoint
from trainer.shared.errors import TrainerError
from trainer.training.roll_back import before_bad_step

CONTENT = {
    "progress": {"epoch": 1, "global_step": 7},
    "figures": {"loss": 0.1, "top1": [1, None]},
    "run": {"name": "ü"},
}


def blob(seed: int, items: int = 12) -> Blob:
    data = np.random.default_rng(seed).integers(0, 256, 4 * items, dtype=np.uint8)
    return Blob("F32", (items // 4, 4), data.data)


def save(folder: Path, step: int) -> CheckpointManifest:
    return write_checkpoint(
        folder, step, {"model.w": blob(step), "optimizer.w": blob(step + 1), "model.b": blob(9, 4)}, CONTENT
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def reason(path: Path) -> str:
    with pytest.raises(BadCheckpointError) as refusal:
        verify_checkpoint(path)
    return str(refusal.value)


def reseal(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Change the manifest of a checkpoint and correct its hash."""
    document = json.loads((path / "manifest.json").read_text())
    del document["sha256"]
    change(document)
    body = json.dumps(document)[1:].encode()
    first = f'{{"sha256":"{hashlib.sha256(body).hexdigest()}",\n'.encode()
    (path / "manifest.json").write_bytes(first + body)


def test_a_written_checkpoint_is_read_back(tmp_path: Path) -> None:
    written = save(tmp_path / "checkpoints", 7)
    assert verify_checkpoint(written.path) == read_manifest(written.path) == written
    assert written.path == tmp_path / "checkpoints/step-000000007"
    assert written.content == CONTENT
    assert written.bytes == (written.path / "state.safetensors").stat().st_size
    assert written.tensors["model.w"].sha256 == hashlib.sha256(blob(7).data).hexdigest()
    assert names(tmp_path / "checkpoints") == ["step-000000007"]
    assert names(written.path) == ["manifest.json", "state.safetensors"]


def test_a_figure_that_is_not_finite_does_not_fail_the_save(tmp_path: Path) -> None:
    written = write_checkpoint(tmp_path, 1, {}, {"loss": float("nan"), "all": (1.5, float("inf"))})
    assert written.content == {"loss": None, "all": [1.5, None]}
    assert "NaN" not in (written.path / "manifest.json").read_text()


def test_the_safetensors_library_reads_every_type(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(3, 5, generator=generator)
    tensors = {
        "f32": real,
        "f64": real.double(),
        "f16": real.half(),
        "bf16": real.bfloat16(),
        "i64": torch.tensor([2**62, -1]),
        "i32": torch.tensor([[2**30], [-1]], dtype=torch.int32),
        "u8": torch.arange(7, dtype=torch.uint8),
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(0.25),
        "empty": torch.empty(0, 4),
        # Longer than a chunk, and not a multiple of it.
        "long": torch.arange(1_500_001, dtype=torch.int32),
    }
    types = {
        **{torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16"},
        **{torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"},
    }
    blobs = {
        name: Blob(types[value.dtype], tuple(value.shape), value.flatten().view(torch.uint8).numpy().data)
        for name, value in tensors.items()
    }
    # A view of another shape and type is written like bytes, even a scalar's.
    blobs["f32"] = Blob("F32", (3, 5), real.numpy().data)
    blobs["scalar"] = Blob("F32", (), tensors["scalar"].numpy().data)
    written = write_checkpoint(tmp_path, 1, blobs, {})
    read = load_file(written.path / "state.safetensors")
    assert read.keys() == tensors.keys()
    for name, value in tensors.items():
        assert read[name].dtype == value.dtype, name
        assert torch.equal(read[name], value), name


def test_each_tensor_is_aligned_to_its_items_size(tmp_path: Path) -> None:
    blobs = {
        name: Blob(dtype, (3,), memoryview(bytes(3 * size)))
        for name, dtype, size in (
            ("a", "U8", 1),
            ("b", "I64", 8),
            ("c", "BF16", 2),
            ("d", "F32", 4),
            ("abc", "BOOL", 1),
        )
    }
    state = (write_checkpoint(tmp_path, 1, blobs, {}).path / "state.safetensors").read_bytes()
    length = int.from_bytes(state[:8], "little")
    assert length % 8 == 0
    table = json.loads(state[8 : 8 + length])
    for name, blob in blobs.items():
        assert table[name]["data_offsets"][0] % (blob.data.nbytes // 3) == 0, name


def test_a_blob_whose_length_does_not_match_its_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tensor w: 8 bytes, but F32 \(3,\) has 12"):
        write_checkpoint(tmp_path, 1, {"w": Blob("F32", (3,), memoryview(bytes(8)))}, {})
    assert names(tmp_path) == []


@pytest.mark.parametrize("file", ["manifest.json", "state.safetensors"])
def test_a_file_cut_off_at_any_byte_is_refused(tmp_path: Path, file: str) -> None:
    path = save(tmp_path, 7).path / file
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert file in reason(path.parent), length
    path.write_bytes(whole + b"\n")
    assert file in reason(path.parent)
    path.write_bytes(whole)
    verify_checkpoint(path.parent)


@pytest.mark.parametrize("file", ["manifest.json", "state.safetensors"])
def test_any_flipped_bit_is_refused(tmp_path: Path, file: str) -> None:
    path = save(tmp_path, 7).path / file
    whole = path.read_bytes()
    with path.open("r+b", buffering=0) as stream:
        for bit in range(8 * len(whole)):
            stream.seek(bit // 8)
            stream.write(bytes([whole[bit // 8] ^ 1 << bit % 8]))
            assert reason(path.parent), bit
            stream.seek(bit // 8)
            stream.write(whole[bit // 8 : bit // 8 + 1])
    verify_checkpoint(path.parent)


def _cut(path: Path) -> None:
    state = path / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1])


def _flip(path: Path) -> None:
    data = bytearray((path / "state.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "state.safetensors").write_bytes(data)


def _replace_by_a_folder(path: Path) -> None:
    (path / "state.safetensors").unlink()
    (path / "state.safetensors").mkdir()


def _replace_by_a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("nothing")


def _nothing(_path: Path) -> None:
    """Leave it valid; the run has rolled back past its step."""


def _older(path: Path) -> None:
    reseal(path, lambda document: document.update(version=0))


def _newer(path: Path) -> None:
    (path / "manifest.json").write_text('{"format": "pnas-checkpoint", "version": 2, "of": "other fields"}')


def _inconsistent(path: Path) -> None:
    reseal(path, lambda document: document.update(bytes=1))


def _without_tensors(path: Path) -> None:
    reseal(path, lambda document: document.pop("tensors"))


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (shutil.rmtree, "it is missing"),
    (lambda path: (path / "manifest.json").unlink(), "manifest.json is missing"),
    (lambda path: (path / "state.safetensors").unlink(), "state.safetensors is missing"),
    (lambda path: (path / "manifest.json").write_bytes(b""), "manifest.json is empty"),
    (lambda path: (path / "state.safetensors").write_bytes(b""), "state.safetensors is empty"),
    (lambda path: (path / "manifest.json").write_text("{"), "manifest.json is damaged (not JSON: "),
    (lambda path: (path / "manifest.json").write_bytes(b"\xff\xfe{"), "manifest.json is damaged (not JSON: "),
    (lambda path: (path / "manifest.json").write_text("[" * 100_000), "manifest.json is damaged (not JSON: "),
    (lambda path: (path / "manifest.json").write_text("[]"), "manifest.json is not of this program"),
    (lambda path: (path / "manifest.json").write_text('{"layers": 3}'), "manifest.json is not of this program"),
    (_older, "written in format 0, this program reads 1"),
    (_newer, "written in format 2, this program reads 1"),
    (_inconsistent, "manifest.json is damaged (ValueError: its size is not the sum of its tensors)"),
    (_without_tensors, "manifest.json is damaged (KeyError: 'tensors')"),
    (_cut, " bytes, not "),
    (_cut, ": the end is missing"),
    (_flip, "tensor optimizer.w: wrong sha256"),
    (_replace_by_a_folder, "state.safetensors is not a file"),
    (_replace_by_a_file, "it is a file, not a folder"),
]


@pytest.mark.parametrize(("damage", "expected"), DAMAGES)
def test_the_newest_valid_checkpoint_is_found_and_newer_ones_are_refused_with_their_reason(
    tmp_path: Path, damage: Callable[[Path], object], expected: str
) -> None:
    older, newer = save(tmp_path, 3), save(tmp_path, 20)
    damage(newer.path)
    assert expected in reason(newer.path)
    if not newer.path.exists():
        newer.path.symlink_to(tmp_path / "nowhere")
    refused: list[tuple[Path, str]] = []
    before = names(tmp_path)
    assert newest_valid(tmp_path, on_refused=lambda path, why: refused.append((path, why))) == older
    assert [path for path, _ in refused] == [newer.path]
    assert expected in refused[0][1]
    assert names(tmp_path) == before


def test_without_a_valid_checkpoint_each_is_refused_newest_first(tmp_path: Path) -> None:
    for step in (1, 5, 1_000_000_000):
        _cut(save(tmp_path, step).path)
    refused: list[str] = []
    assert newest_valid(tmp_path, on_refused=lambda path, _: refused.append(path.name)) is None
    assert refused == ["step-1000000000", "step-000000005", "step-000000001"]
    assert newest_valid(tmp_path / "absent", on_refused=lambda path, _: refused.append(path.name)) is None
    assert len(refused) == 3


def test_an_unreadable_state_is_refused(tmp_path: Path) -> None:
    written = save(tmp_path, 7)
    (written.path / "manifest.json").unlink()
    (written.path / "manifest.json").symlink_to("manifest.json")
    assert reason(written.path).startswith("manifest.json cannot be read: Too many levels of symbolic links")


@pytest.mark.parametrize("looks", [1, 3, None])  # that fail; None stands for all
@pytest.mark.parametrize("file", ["manifest.json", "state.safetensors"])
@pytest.mark.parametrize("name", ["ESTALE", "ETIMEDOUT", "EMFILE", "EIO", "EACCES"])
def test_a_checkpoint_that_cannot_be_read_for_a_moment_is_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, file: str, looks: int | None
) -> None:
    older, newer = save(tmp_path, 10), save(tmp_path, 20)
    refused, waits, failed = list[str](), list[float](), iter(range(looks or 1000))
    number, open_file, before = getattr(errno, name), Path.open, names(tmp_path)

    def fail_at_first(path: Path, *arguments: Any) -> Any:
        if path == newer.path / file and next(failed, None) is not None:
            raise OSError(number, os.strerror(number), str(path))
        return open_file(path, *arguments)

    monkeypatch.setattr(Path, "open", fail_at_first)
    monkeypatch.setattr(time, "sleep", waits.append)

    def find() -> CheckpointManifest | None:
        return newest_valid(tmp_path, on_refused=lambda path, why: refused.append(f"{path.name}: {why}"))

    if name in ("EIO", "EACCES"):
        assert find() == older
        assert refused == [f"step-000000020: {file} cannot be read: {os.strerror(number)}"]
    elif looks is None:
        with pytest.raises(
            TrainerError, match=f"{file} cannot be read now: .*; nothing was changed: start the run again"
        ):
            find()
    else:
        assert find() == newer
        assert len(waits) == looks + 1
    assert names(tmp_path) == before
    assert not refused or name in ("EIO", "EACCES")


def test_only_checkpoints_are_listed(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        save(tmp_path, step)
    for name in ("best.safetensors", "step-12", "step-0000000012", ".step-000000011.partial", "step-000000011.old"):
        (tmp_path / name).mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000000010", "step-000000009", "step-000000002"]
    assert list_checkpoints(tmp_path / "absent") == []


def test_prune_keeps_the_newest_and_the_spared_ones(tmp_path: Path) -> None:
    for step in range(1, 7):
        save(tmp_path, step)
    (tmp_path / "best.safetensors").write_text("weights")
    for name in (".step-000000005.partial", ".step-000000007.partial", ".step-000000009.pruned", ".step-1.partial"):
        (tmp_path / name).mkdir()
    (tmp_path / ".step-000000004.refused").mkdir()
    (tmp_path / ".step-000000004.refused/state.safetensors").write_text("torn")
    prune_checkpoints(tmp_path, keep=2, spare=[tmp_path / "step-000000003"])
    expected = ["step-000000003", "step-000000005", "step-000000006"]
    remaining = [".step-000000007.partial", ".step-1.partial", "best.safetensors", *expected]
    assert names(tmp_path) == remaining
    prune_checkpoints(tmp_path, keep=5, spare=[])
    assert names(tmp_path) == remaining
    with pytest.raises(ValueError, match="at least 1"):
        prune_checkpoints(tmp_path, keep=0)
    assert names(tmp_path) == remaining


@pytest.mark.parametrize(
    ("keep", "expected"),
    [(1, [60, 30]), (2, [60, 50, 30]), (3, [60, 50, 40, 30]), (9, [60, 50, 40, 30, 20, 10])],
)
@pytest.mark.parametrize("damage", [_cut, _replace_by_a_file, _nothing])
def test_prune_spares_a_new_checkpoint_with_a_smaller_step_than_others(
    tmp_path: Path, keep: int, expected: list[int], damage: Callable[[Path], object]
) -> None:
    for step in (10, 20, 40, 50, 60):
        save(tmp_path, step)
    for step in (40, 50, 60):
        damage(tmp_path / f"step-0000000{step}")
    written = save(tmp_path, 30)
    prune_checkpoints(tmp_path, keep=keep, spare=[written.path])
    assert names(tmp_path) == sorted(f"step-0000000{step}" for step in expected)
    assert verify_checkpoint(written.path) == written


def test_a_run_that_rolled_back_never_has_more_than_one_checkpoint_too_many(tmp_path: Path) -> None:
    for step in (70, 80, 90):
        _cut(save(tmp_path, step).path)
    for step in range(10, 120, 10):
        written = save(tmp_path, step)
        prune_checkpoints(tmp_path, keep=2, spare=[written.path])
        newest = newest_valid(tmp_path, on_refused=lambda _path, _why: None)
        assert newest == written
        assert len(list_checkpoints(tmp_path)) == (3 if step < 80 else 2)
    assert names(tmp_path) == ["step-000000100", "step-000000110"]


@pytest.mark.parametrize(
    ("health", "keep", "expected"),
    [
        ("good good good good", 2, [30, 40]),
        ("good good bad bad", 2, [10, 20, 40]),
        ("good bad bad bad", 1, [10, 40]),
        ("good doubtful doubtful doubtful", 2, [10, 30, 40]),
        ("doubtful doubtful bad bad", 2, [10, 20, 40]),
        ("bad bad bad bad", 3, [40]),
        ("good good damaged damaged", 2, [20, 30, 40]),
    ],
)
def test_checkpoints_of_a_failing_training_push_no_good_one_out(
    tmp_path: Path, health: str, keep: int, expected: list[int]
) -> None:
    for step, word in zip((10, 20, 30, 40), health.split(), strict=True):
        path = write_checkpoint(tmp_path, step, {"model.w": blob(step)}, {"health": word}).path
        if word == "damaged":
            (path / "manifest.json").write_bytes(b"")
    prune_checkpoints(tmp_path, keep=keep)
    assert names(tmp_path) == [f"step-0000000{step}" for step in expected]


def test_a_run_goes_back_to_before_its_failure_if_it_can_and_newer_checkpoints_are_set_aside(tmp_path: Path) -> None:
    for step, word in ((10, "good"), (20, "good"), (30, "doubtful"), (40, "bad")):
        write_checkpoint(tmp_path, step, {"model.w": blob(step)}, {"health": word})
    _cut(tmp_path / "step-000000020")
    found: list[str | None] = []
    for rule in before_bad_step(20):
        newest = newest_valid(tmp_path, on_refused=lambda _path, _why: None, accept=rule)
        found.append(None if newest is None else newest.path.name)
    assert found == ["step-000000010", "step-000000010", "step-000000030"]
    newest = read_manifest(tmp_path / "step-000000010")
    moved = set_newer_aside(tmp_path, newest.path, attempt=7)
    assert [path.name for path in moved] == ["step-000000040", "step-000000030", "step-000000020"]
    write_checkpoint(tmp_path, 40, {"model.w": blob(1)}, {"again": True})
    set_newer_aside(tmp_path, newest.path, attempt=7)
    assert verify_checkpoint(tmp_path / "set-aside-7/step-000000040").content == {"again": True}
    assert names(tmp_path) == ["set-aside-7", "step-000000010"]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    _cut(save(tmp_path, 7).path)
    (tmp_path / ".writing-1/step-000000007").mkdir(parents=True)
    (tmp_path / ".writing-1/step-000000007/state.safetensors").write_text("a killed process's")
    again = write_checkpoint(tmp_path, 7, {"model.w": blob(1)}, {"again": True})
    assert verify_checkpoint(again.path).content == {"again": True}
    assert names(tmp_path) == ["step-000000007"]


def test_a_replacement_killed_between_its_renames_loses_no_checkpoint(tmp_path: Path) -> None:
    old = save(tmp_path, 7)
    aside = old.path.rename(tmp_path / "step-000000007.replaced")
    newest = newest_valid(tmp_path, on_refused=lambda path, why: pytest.fail(f"{path}: {why}"))
    assert newest is not None
    assert newest.path == aside
    prune_checkpoints(tmp_path, keep=1)
    assert list_checkpoints(tmp_path) == [aside]
    new = write_checkpoint(tmp_path, 7, {}, {})
    assert list_checkpoints(tmp_path) == [new.path]
    shutil.copytree(new.path, aside)
    prune_checkpoints(tmp_path, keep=3)
    assert names(tmp_path) == ["step-000000007"]


class DamagesDisk(UserDict[str, Any]):
    """Content that flips a bit of the state file when the manifest is made, after the state was written."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def keys(self) -> KeysView[str]:
        _flip(self._path)
        return super().keys()


def test_a_checkpoint_that_the_disk_damages_is_set_aside_and_older_ones_stay(tmp_path: Path) -> None:
    older = save(tmp_path, 3)
    for step in (4, 3, 4):
        partial = tmp_path / f".writing-1/step-00000000{step}"
        with pytest.raises(
            BadCheckpointError, match=r"read back from the disk: tensor w: wrong sha256; set aside as .*\.refused"
        ):
            write_checkpoint(tmp_path, step, {"w": blob(1)}, DamagesDisk(partial))
        assert list_checkpoints(tmp_path) == [older.path]
        assert verify_checkpoint(older.path) == older
    assert names(tmp_path) == [".step-000000003.refused", ".step-000000004.refused", "step-000000003"]


WRITER = """
import hashlib, itertools, sys
from pathlib import Path
from trainer.checkpoint.manifest import Blob
from trainer.checkpoint.writing import prune_checkpoints, write_checkpoint

folder, last = Path(sys.argv[1]), int(sys.argv[2])
for count in itertools.count(1):
    step = last + (count + 1) // 2  # each step twice, so that replacements are killed too
    data = memoryview(hashlib.sha256(b"%d" % count).digest() * 20_000)
    blobs = {"a": Blob("U8", (len(data),), data), "b": Blob("F32", (8,), data[:32])}
    write_checkpoint(folder, step, blobs, {"count": count})
    print(step, flush=True)
    if count % 3 == 0:
        prune_checkpoints(folder, keep=2)
"""


def test_a_writer_killed_at_any_moment_leaves_no_torn_checkpoint(tmp_path: Path) -> None:
    seed = time.time_ns()
    sys.stdout.write(f"seed {seed}\n")
    moments = random.Random(seed)
    last = 0
    for kill in range(10):
        arguments = [sys.executable, "-c", WRITER, str(tmp_path), str(last)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            first = writer.stdout.readline()
            time.sleep(moments.uniform(0, 0.1))
            writer.send_signal(signal.SIGKILL)
            last = max(int(line) for line in [first, *writer.stdout.read().split()])
        valid = [verify_checkpoint(path) for path in list_checkpoints(tmp_path)]
        assert valid, f"kill {kill}"
        newest = int(valid[0].path.name.removeprefix("step-").removesuffix(".replaced"))
        assert newest >= last, f"kill {kill}"
        last = newest


LIMITED = """
import sys
from pathlib import Path
from trainer.checkpoint.manifest import Blob
from trainer.checkpoint.writing import write_checkpoint

try:
    write_checkpoint(Path(sys.argv[1]), 4, {"w": Blob("U8", (100_000,), memoryview(bytes(100_000)))}, {})
except OSError as error:
    print(error.strerror)
"""


@pytest.mark.parametrize("limit", [0, 100, 60_000, 100_000])
def test_a_full_disk_leaves_the_older_checkpoints_and_no_torn_one(tmp_path: Path, limit: int) -> None:
    older = save(tmp_path, 3)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.stdout == "File too large\n"
    assert names(tmp_path) == ["step-000000003"]
    assert verify_checkpoint(older.path) == older
