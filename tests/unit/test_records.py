"""What a run leaves behind: the seed's files line by line, one metrics line per step, and nothing overwritten."""

import importlib
import json
import platform
from pathlib import Path

import pytest

from trainer.config import TrainConfig
from trainer.errors import ConflictError, TrainerError, UsageError
from trainer.provenance import config_hash
from trainer.records import Records, logfmt
from trainer.run_folder import create_run_folder


def test_logfmt_keeps_values_readable_and_apart() -> None:
    line = logfmt("step", {"epoch": 0, "loss": 6.9077553, "top1": None, "cause": 'no "space" left', "lr": 0.4})
    assert line == 'step epoch=0 loss=6.90776 cause="no \\"space\\" left" lr=0.4'


def test_the_result_file_has_the_seeds_name_and_lines(tmp_path: Path) -> None:
    with Records(tmp_path, TrainConfig(), rank=0, world_size=8) as records:
        path = records.result(fps=353.0, top1=79.625, loss=1.234567, wall_s=12345.6)
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
        path = records.result(fps=69.0, top1=None, loss=None, wall_s=1)
    assert path == tmp_path / "PnasNet5Large_bs32_1p_perf.log"
    assert "TrainAccuracy" not in path.read_text()


def test_every_rank_keeps_the_seeds_table(tmp_path: Path) -> None:
    for rank in (0, 3):
        with Records(tmp_path, TrainConfig(), rank=rank, world_size=4) as records:
            records.epoch(lr=0.4, train_loss=6.9, valid_loss=6.5, train_top1=0.1, valid_top1=0.2, fps=69.0)
        table = (tmp_path / str(rank) / f"train_{rank}.log").read_text()
        assert table.splitlines() == [
            "Learning Rate\tTrain Loss\tValid Loss\tTrain Acc.\tValid Acc.\tTraining FPS\t",
            "0.400000\t6.900000\t6.500000\t0.100000\t0.200000\t69.000000\t",
        ]


def test_metrics_hold_one_line_per_step_and_rank_0_alone_writes_them(tmp_path: Path) -> None:
    rows = [{"epoch": 0, "step": s, "global_step": s, "loss": 6.9 - s, "lr": 0.4} for s in range(3)]
    for rank in (0, 1):
        with Records(tmp_path, TrainConfig(), rank=rank, world_size=2) as records:
            records.steps(rows)
            records.evaluation({"epoch": 0, "top1": 1.0, "top5": 5.0, "loss": 6.0, "images": 360})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["step", "step", "step", "eval"]
    assert [line["step"] for line in lines[:3]] == [0, 1, 2]
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_diverged_run_leaves_json_that_every_reader_takes(tmp_path: Path) -> None:
    with Records(tmp_path, TrainConfig(), rank=0, world_size=1) as records:
        records.steps([{"epoch": 0, "step": 0, "global_step": 0, "loss": float("nan"), "lr": 0.4}])
        records.evaluation({"epoch": 0, "top1": 1.0, "top5": 5.0, "loss": float("inf"), "images": 360})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=refuse)["loss"] for line in lines] == [None, None]


def test_tensorboard_reads_each_scalar_at_its_step(tmp_path: Path) -> None:
    event_accumulator = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    with Records(tmp_path, TrainConfig(), rank=0, world_size=1) as records:
        records.steps([{"epoch": 0, "step": s, "global_step": s, "loss": 4.0 - s, "lr": 0.5} for s in range(3)])
        records.evaluation({"epoch": 7, "top1": 1.0, "top5": 5.0, "loss": 6.0, "images": 360})
    board = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("train/loss")] == [(0, 4.0), (1, 3.0), (2, 2.0)]
    assert [(event.step, event.value) for event in board.Scalars("eval/top5")] == [(7, 5.0)]


def test_a_file_that_is_there_already_is_one_line_and_stays(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("kept")
    with pytest.raises(TrainerError, match=r"metrics.jsonl: cannot be written: File exists; "):
        Records(tmp_path, TrainConfig(), rank=0, world_size=1)
    assert (tmp_path / "metrics.jsonl").read_text() == "kept"


def test_a_run_never_enters_the_folder_of_another(tmp_path: Path) -> None:
    config = TrainConfig(output=tmp_path / "out", run_name="mine")
    run = create_run_folder(config, leads=True, alone=True, now=0)
    (run / "precious").write_text("kept")
    with pytest.raises(ConflictError, match=r"--run-name mine: .* exists and a run never overwrites another"):
        create_run_folder(config, leads=True, alone=True, now=0)
    assert (run / "precious").read_text() == "kept"


def test_two_runs_of_the_same_second_get_two_folders(tmp_path: Path) -> None:
    (tmp_path / "output").write_text("a file")
    with pytest.raises(UsageError, match="is a file"):
        create_run_folder(TrainConfig(output=tmp_path / "output"), leads=True, alone=True, now=0)
    config = TrainConfig(output=tmp_path)
    assert len({create_run_folder(config, leads=True, alone=True, now=0) for _ in range(3)}) == 3


def test_an_output_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--output .*: cannot be written: Not a directory"):
        create_run_folder(TrainConfig(output=tmp_path / "file" / "below"), leads=True, alone=True, now=0)


def test_several_nodes_share_one_named_folder(tmp_path: Path) -> None:
    named = TrainConfig(output=tmp_path, run_name="shared")
    folders = {create_run_folder(named, leads=leads, alone=False, now=0) for leads in (False, True, False)}
    assert len(folders) == 1
    with pytest.raises(ConflictError):
        create_run_folder(named, leads=True, alone=False, now=0)
    with pytest.raises(UsageError, match="--run-name is needed"):
        create_run_folder(TrainConfig(output=tmp_path), leads=True, alone=False, now=0)


def test_the_settings_hash_changes_with_any_setting() -> None:
    assert config_hash(TrainConfig()) == config_hash(TrainConfig())
    assert config_hash(TrainConfig()) != config_hash(TrainConfig(seed=1))
