"""A folder whose name is not UTF-8 is a folder as any other: for the settings, a worker's task and checkpoints."""

import os
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from trainer.checkpoint.manifest import decode_manifest, encode_manifest
from trainer.shared.config import TrainConfig
from trainer.shared.files import utf8_name
from trainer.shared.yaml_text import to_yaml
from trainer.worker.task import WorkerTask


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / os.fsdecode(b"caf\xe9")
    path.mkdir()
    return path


def test_the_settings_and_the_task_come_back_as_they_were(folder: Path) -> None:
    config = TrainConfig(data_path=folder, output=folder)
    assert yaml.safe_load(to_yaml(config.model_dump(mode="json")))["output"] == str(folder)
    task = WorkerTask(config, run=folder, command=("python", str(folder)), checkpoint=folder / "step-1")
    assert WorkerTask.from_json(task.to_json()) == task


def test_a_checkpoints_manifest_has_the_path_and_no_nan(folder: Path) -> None:
    manifest = encode_manifest({"config": {"output": str(folder)}, "loss": float("nan"), "classes": ("a",)}, {}, "now")
    content = decode_manifest(folder, manifest).content
    assert content == {"config": {"output": str(folder)}, "loss": None, "classes": ["a"]}


@pytest.mark.parametrize("name", ["state.safetensors", os.fsdecode(b"\xff.safetensors")])
def test_safetensors_reads_a_file_there(folder: Path, name: str) -> None:
    save_file({"a": torch.ones(3)}, folder / name)
    with utf8_name(folder / name) as readable:
        assert torch.equal(load_file(readable)["a"], torch.ones(3))
