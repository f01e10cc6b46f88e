"""A run leaves the seed's files line by line and one metrics line per step, and overwrites nothing."""

import errno
import importlib
import json
import os
import platform
import resource
import threading
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from trainer.records import run_records
from trainer.records.files import AppendFile
from trainer.records.folder import create_run_folder
from trainer.records.provenance import config_hash
from trainer.records.run_records import Records, SavedExtent, logfmt
from trainer.shared.config import TrainConfig
from trainer.shared.errors import FolderTakenError, TrainerError, UsageError

SCORE = {"epoch": 0, "top1": 1.0, "top5": 5.0, "loss": 6.0, "images": 360}


def _step(global_step: int, loss: float | None = None) -> dict[str, Any]:
    loss = 4.0 - global_step if loss is None else loss
    return {"epoch": 0, "step": global_step, "global_step": global_step, "loss": loss, "lr": 0.5}


def _scalars(run: Path, tag: str) -> list[tuple[int, float]]:
    accumulator = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    board = accumulator.EventAccumulator(str(run / "tensorboard" / tag.partition("/")[0])).Reload()
    return [(event.step, event.value) for event in board.Scalars(tag)]


def test_logfmt_shows_control_characters_as_escapes() -> None:
    name = "a\nerror: lost\r\x1b[2J\udce9\u202e.JPEG"
    assert logfmt(f"error {name}", {"text": name, "path": "b\x9b"}) == (
        r"error a\nerror: lost\r\x1b[2J\xe9\u202e.JPEG"
        r' text="a\\nerror: lost\\r\\x1b[2J\\xe9\\u202e.JPEG" path=b\x9b'
    )


def test_logfmt_keeps_values_readable_and_apart() -> None:
    line = logfmt("step", {"epoch": 0, "loss": 6.9077553, "top1": None, "cause": 'no "space" left', "lr": 0.4})
    assert line == 'step epoch=0 loss=6.90776 cause="no \\"space\\" left" lr=0.4'


def test_the_result_file_has_the_seeds_name_and_lines(tmp_path: Path) -> None:
    with Records(tmp_path, TrainConfig(), rank=0, world_size=8) as records:
        path = records.write_result(fps=353.0, top1=79.625, loss=1.234567, wall_s=12345.6)
    assert path == tmp_path / "PnasNet5Large_bs32_8p_acc.log"
    assert path.read_text().splitlines() == [
        "Network = PnasNet5Large",
        "RankSize = 8",
        "BatchSize = 32",
        f"DeviceType = {platform.machine()}",
        "CaseName = PnasNet5Large_bs32_8p_acc",
        "ActualFPS = 353.0",
        "TrainingTime = 725.212",
        "TrainAccuracy = 79.625",
        "ActualLoss = 1.235",
        "E2ETrainingTime = 12346",
    ]


def test_a_timed_run_reports_no_accuracy(tmp_path: Path) -> None:
    with Records(tmp_path, TrainConfig(), rank=0, world_size=1) as records:
        path = records.write_result(fps=69.0, top1=None, loss=None, wall_s=1)
    assert path == tmp_path / "PnasNet5Large_bs32_1p_perf.log"
    assert "TrainAccuracy" not in path.read_text()


def test_every_rank_keeps_the_seeds_table(tmp_path: Path) -> None:
    for rank in (0, 3):
        with Records(tmp_path, TrainConfig(), rank=rank, world_size=4) as records:
            records.write_epoch(lr=0.4, train_loss=6.9, valid_loss=6.5, train_top1=0.1, valid_top1=0.2, fps=69.0)
        table = (tmp_path / str(rank) / f"train_{rank}.log").read_text()
        assert table.splitlines() == [
            "Learning Rate\tTrain Loss\tValid Loss\tTrain Acc.\tValid Acc.\tTraining FPS\t",
            "0.400000\t6.900000\t6.500000\t0.100000\t0.200000\t69.000000\t",
        ]


def test_metrics_hold_one_line_per_step_and_only_rank_0_writes_them(tmp_path: Path) -> None:
    rows = [{"epoch": 0, "step": s, "global_step": s, "loss": 6.9 - s, "lr": 0.4} for s in range(3)]
    for rank in (0, 1):
        with Records(tmp_path, TrainConfig(), rank=rank, world_size=2) as records:
            records.write_steps(rows, fps=353.0, top1=0.5)
            records.write_evaluation({"epoch": 0, "top1": 1.0, "top5": 5.0, "loss": 6.0, "images": 360}, steps=3)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["step", "step", "step", "progress", "eval"]
    assert [line["step"] for line in lines[:3]] == [0, 1, 2]
    assert (lines[3]["global_step"], lines[3]["fps"], lines[3]["top1"]) == (2, 353.0, 0.5)
    for line in lines[3:]:
        datetime.strptime(line["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_diverged_run_leaves_json_that_every_reader_takes(tmp_path: Path) -> None:
    with Records(tmp_path, TrainConfig(), rank=0, world_size=1) as records:
        records.write_steps([{"epoch": 0, "step": 0, "global_step": 0, "loss": float("nan"), "lr": 0.4}])
        records.write_evaluation({"epoch": 0, "top1": 1.0, "top5": 5.0, "loss": float("inf"), "images": 360}, steps=1)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=refuse).get("loss", 0) for line in lines] == [None, 0, None]


def test_tensorboard_reads_each_scalar_at_its_step(tmp_path: Path) -> None:
    with Records(tmp_path, TrainConfig(), rank=0, world_size=1) as records:
        records.write_steps([_step(s) for s in range(3)], fps=353.0, top1=0.5)
        records.write_evaluation({**SCORE, "epoch": 7}, steps=3)
    assert _scalars(tmp_path, "train/loss") == [(0, 4.0), (1, 3.0), (2, 2.0)]
    assert _scalars(tmp_path, "train/fps") == [(2, 353.0)]
    assert _scalars(tmp_path, "train/top1") == [(2, 0.5)]
    assert _scalars(tmp_path, "eval/top5") == [(2, 5.0)]


def test_tensorboard_shows_a_step_that_was_taken_again_once(tmp_path: Path) -> None:
    for attempt, losses in enumerate((range(4), range(3, 6)), start=1):
        saved = None if attempt == 1 else SavedExtent(steps=3, epochs=1, epoch_steps=1)
        with Records(tmp_path, TrainConfig(), rank=0, world_size=1, saved=saved, attempt=attempt) as records:
            records.write_steps([_step(s, loss=10 * attempt + s) for s in losses])
            for epoch in range(attempt - 1, 2):
                row = {**SCORE, "epoch": epoch, "top5": float(10 * attempt + epoch)}
                records.write_evaluation(row, steps=2 * epoch + 2)
    assert _scalars(tmp_path, "train/loss") == [(0, 10.0), (1, 11.0), (2, 12.0), (3, 23.0), (4, 24.0), (5, 25.0)]
    assert _scalars(tmp_path, "eval/top5") == [(1, 10.0), (3, 21.0)]


def test_a_run_that_stopped_before_an_evaluation_shows_it_once(tmp_path: Path) -> None:
    for attempt in (1, 2):
        saved = None if attempt == 1 else SavedExtent(steps=2, epochs=0, epoch_steps=2)
        with Records(tmp_path, TrainConfig(), rank=0, world_size=1, saved=saved, attempt=attempt) as records:
            if attempt == 1:
                records.write_steps([_step(s) for s in range(2)])
            records.write_evaluation({**SCORE, "epoch": 0, "top5": float(attempt)}, steps=2)
    assert _scalars(tmp_path, "eval/top5") == [(1, 2.0)]


def test_metrics_of_a_restarted_run_have_each_step_once_and_lose_no_line(tmp_path: Path) -> None:
    with Records(tmp_path, TrainConfig(), rank=0, world_size=1) as records:
        for epoch in range(2):
            records.write_steps([_step(2 * epoch + s) for s in range(2)])
            records.write_evaluation({**SCORE, "epoch": epoch}, steps=2 * epoch + 2)
    metrics = tmp_path / "metrics.jsonl"
    first = metrics.read_text().splitlines()
    with metrics.open("a") as file:
        file.write('{"kind": "step", "glob')
    with Records(
        tmp_path, TrainConfig(), rank=0, world_size=1, saved=SavedExtent(steps=3, epochs=1), attempt=2
    ) as records:
        assert metrics.read_text().splitlines() == first[:5]
        records.write_steps([_step(3)])
        records.sync()
    assert metrics.read_text().splitlines()[:6] == [*first[:5], first[5]]
    replaced = [json.loads(line) for line in (tmp_path / "metrics-replaced.jsonl").read_text().splitlines()]
    assert [row.pop("attempt") for row in replaced] == [2, 2, 2, 2]
    assert replaced == [*map(json.loads, first[5:]), {"torn": '{"kind": "step", "glob'}]


def test_a_run_that_rewinds_continues_in_the_same_files(tmp_path: Path) -> None:
    with Records(tmp_path, TrainConfig(), rank=0, world_size=1) as records:
        records.write_steps([_step(s) for s in range(4)])
        records.rewind(SavedExtent(steps=1, epochs=0))
        records.write_steps([_step(s, loss=0.5) for s in range(1, 3)])
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [(row["global_step"], row["loss"]) for row in rows if row["kind"] == "step"]
    assert steps == [(0, 4.0), (1, 0.5), (2, 0.5)]
    assert [row["global_step"] for row in rows if row["kind"] == "progress"] == [2]
    assert _scalars(tmp_path, "train/loss") == [(0, 4.0), (1, 0.5), (2, 0.5)]


def test_the_seeds_table_of_a_restarted_run_has_each_epoch_once(tmp_path: Path) -> None:
    figures = {"lr": 0.4, "train_loss": 6.9, "train_top1": 0.1, "valid_top1": 0.2, "fps": 69.0}
    with Records(tmp_path, TrainConfig(), rank=1, world_size=2) as records:
        for epoch in range(3):
            records.write_epoch(valid_loss=float(epoch), **figures)
    table = tmp_path / "1" / "train_1.log"
    before = table.read_text().splitlines()
    with Records(
        tmp_path, TrainConfig(), rank=1, world_size=2, saved=SavedExtent(steps=9, epochs=1), attempt=2
    ) as records:
        assert table.read_text().splitlines() == before[:2]
        records.write_epoch(valid_loss=1.0, **figures)
    assert table.read_text().splitlines() == before[:3]
    assert (tmp_path / "1" / "train_1-replaced.log").read_text().splitlines() == before[2:]


@pytest.mark.parametrize("torn", ["", "Learning Ra"])
def test_a_table_with_a_torn_first_line_begins_again(tmp_path: Path, torn: str) -> None:
    table = tmp_path / "0" / "train_0.log"
    table.parent.mkdir()
    table.write_text(torn)
    with Records(tmp_path, TrainConfig(), rank=0, world_size=1, attempt=2):
        pass
    assert table.read_text().startswith("Learning Rate\tTrain Loss")


def test_bad_images_are_listed_once_over_all_attempts(tmp_path: Path) -> None:
    listed, skipping = tmp_path / "bad_images.jsonl", TrainConfig(on_bad_image="skip")
    for attempt in (1, 2, 3):
        with Records(tmp_path, skipping, rank=0, world_size=1, attempt=attempt) as records:
            records.list_bad_images([{"path": f"train/a/{n}.JPEG", "why": "truncated"} for n in (attempt, attempt, 1)])
        if attempt == 2:
            with listed.open("a") as file:
                file.write('{"path": "tor')
    with Records(tmp_path, skipping, rank=1, world_size=2) as records:
        records.list_bad_images([{"path": "other"}])
    lines = listed.read_text().splitlines()
    assert lines.pop(2) == '{"path": "tor'
    assert [json.loads(line)["path"] for line in lines] == [f"train/a/{n}.JPEG" for n in (1, 2, 3)]


def _with_room_for(size: int | None, action: Callable[[], object]) -> None:
    """Run `action` while no file can grow beyond `size` bytes, as on a full disk."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size is None else size, hard))
    try:
        action()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


@pytest.mark.parametrize("room", [0, 100, 101, 150, 333])
def test_a_disk_that_is_full_for_a_while_leaves_the_same_files_as_a_healthy_disk(
    tmp_path: Path, room: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit falls between lines, within a line, and within a record of TensorBoard."""
    monkeypatch.setattr(run_records, "timestamp", lambda _seconds: "2026-01-01T00:00:00Z")
    for name, limit in (("healthy", None), ("full", room)):
        run = tmp_path / name
        run.mkdir()
        with Records(run, TrainConfig(), rank=0, world_size=1) as records:
            for number in range(5):
                _with_room_for(limit, partial(records.write_steps, [_step(number)]))
            if limit is not None:
                with pytest.raises(TrainerError, match="cannot be written: File too large"):
                    _with_room_for(limit, records.sync)
                assert capsys.readouterr().out.count("cannot be written") == 2
            records.write_steps([_step(5)])
            records.write_evaluation(SCORE, steps=6)
            records.sync()
    assert capsys.readouterr().out.count("is written again, and lacks nothing") == 2
    healthy, full = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("healthy", "full"))
    assert healthy == full
    assert healthy.count(b"\n") == 13
    assert _scalars(tmp_path / "full", "train/loss") == _scalars(tmp_path / "healthy", "train/loss")
    assert len(_scalars(tmp_path / "full", "train/loss")) == 6


def test_lines_that_wait_when_the_files_are_closed_are_written_if_there_is_room_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Records(tmp_path, TrainConfig(), rank=0, world_size=1) as records:
        _with_room_for(0, partial(records.write_steps, [_step(0)]))
        assert (tmp_path / "metrics.jsonl").read_bytes() == b""
    assert capsys.readouterr().out.count("is written again, and lacks nothing") == 2
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["global_step"] == 0
    assert _scalars(tmp_path, "train/loss") == [(0, 4.0)]


@pytest.mark.usefixtures("capsys")  # without it, the limit also holds for the file with the test's output
def test_a_disk_that_is_full_at_the_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"0/train_0.log: cannot be written: File too large; free space"):
        _with_room_for(0, partial(Records, tmp_path, TrainConfig(), rank=0, world_size=1))


def test_a_closed_file_never_touches_the_next_file(tmp_path: Path) -> None:
    """The system gives the number of a closed file to the next file that is opened."""
    with AppendFile(tmp_path / "lines", fresh=True, on_note=list[str]().append) as file:
        _with_room_for(0, partial(file.write, b"late\n"))
        _with_room_for(0, file.__exit__)
        with (tmp_path / "other").open("wb") as other:
            with pytest.raises(TrainerError, match="lines: cannot be written: Bad file descriptor"):
                file.sync()
            file.__exit__()
            other.write(b"mine\n")
    assert (tmp_path / "other").read_bytes() == b"mine\n"


def test_lines_that_a_file_server_took_and_lost_are_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS can report a full disk as late as at a sync, and drop the data that it had taken before."""
    path = tmp_path / "lines"
    with AppendFile(path, fresh=True, on_note=list[str]().append) as file:
        file.write(b"one\n")
        file.sync()
        file.write(b"two\n")

        def lose(descriptor: int) -> None:
            os.truncate(path, 4)
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as lossy:
            lossy.setattr(os, "fsync", lose)
            with pytest.raises(TrainerError, match="No space left on device"):
                file.sync()
        assert path.read_bytes() == b"one\n"
        file.write(b"three\n")
        assert path.read_bytes() == b"one\ntwo\nthree\n"


def test_lines_written_while_other_threads_sync_are_neither_lost_nor_repeated(tmp_path: Path) -> None:
    path, over = tmp_path / "lines", threading.Event()
    with AppendFile(path, fresh=True, on_note=list[str]().append) as file:

        def keep_syncing() -> None:
            while not over.is_set():
                file.sync()

        threads = [threading.Thread(target=keep_syncing) for _ in range(2)]
        for thread in threads:
            thread.start()
        for number in range(2000):
            file.write(b"%d\n" % number)
        over.set()
        for thread in threads:
            thread.join()
    assert path.read_bytes() == b"".join(b"%d\n" % number for number in range(2000))


def test_a_file_that_exists_is_refused_in_one_line_and_stays(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("kept")
    with pytest.raises(TrainerError, match=r"metrics.jsonl: cannot be written: File exists; "):
        Records(tmp_path, TrainConfig(), rank=0, world_size=1)
    assert (tmp_path / "metrics.jsonl").read_text() == "kept"


def _create(config: TrainConfig, *, is_first_node: bool = True, is_single_node: bool = True) -> Path:
    return create_run_folder(config, is_first_node=is_first_node, is_single_node=is_single_node, now=0)


def test_a_run_never_enters_the_folder_of_another(tmp_path: Path) -> None:
    config = TrainConfig(output=tmp_path / "out", run_name="mine")
    run = _create(config)
    (run / "precious").write_text("kept")
    with pytest.raises(FolderTakenError, match=r"--run-name mine: .* exists and a run never overwrites another"):
        _create(config)
    assert (run / "precious").read_text() == "kept"


def test_two_runs_of_the_same_second_get_two_folders(tmp_path: Path) -> None:
    (tmp_path / "output").write_text("a file")
    with pytest.raises(UsageError, match="is a file"):
        _create(TrainConfig(output=tmp_path / "output"))
    config = TrainConfig(output=tmp_path)
    assert len({_create(config) for _ in range(3)}) == 3


def test_an_output_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--output .*: cannot be written: Not a directory"):
        _create(TrainConfig(output=tmp_path / "file" / "below"))


def test_several_nodes_share_one_named_folder(tmp_path: Path) -> None:
    named = TrainConfig(output=tmp_path, run_name="shared")
    folders = {_create(named, is_first_node=first, is_single_node=False) for first in (False, True, False)}
    assert len(folders) == 1
    with pytest.raises(FolderTakenError):
        _create(named, is_single_node=False)
    with pytest.raises(UsageError, match="--run-name is needed"):
        _create(TrainConfig(output=tmp_path), is_single_node=False)


def test_the_settings_hash_changes_with_any_setting() -> None:
    assert config_hash(TrainConfig()) == config_hash(TrainConfig())
    assert config_hash(TrainConfig()) != config_hash(TrainConfig(seed=1))
