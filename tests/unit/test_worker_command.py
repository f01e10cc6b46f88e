"""What a worker is started with: its device's defaults, unless the administrator decides otherwise."""

from pathlib import Path

import pytest

from trainer.__main__ import worker_command
from trainer.attempt import Attempt
from trainer.config import TrainConfig
from trainer.topology import Topology, Worker

ALONE = Topology(1, 1, 0, (Worker(0, 0, 0),), "127.0.0.1", 29500, None, "options")


@pytest.mark.parametrize(("given", "device", "level"), [(None, "npu", "2"), ("1", "npu", "1"), (None, "cpu", None)])
def test_torch_npu_finds_its_queue_level_before_torch_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, device: str, level: str | None
) -> None:
    monkeypatch.delenv("TASK_QUEUE_ENABLE", raising=False)
    if given is not None:
        monkeypatch.setenv("TASK_QUEUE_ENABLE", given)
    command = worker_command(ALONE.workers[0], ALONE, attempt=Attempt(TrainConfig(), tmp_path, 1, None), device=device)
    assert command.env.get("TASK_QUEUE_ENABLE") == level
