"""A worker's task from the supervisor: a value that travels as JSON in one environment variable."""

import json
from dataclasses import dataclass
from pathlib import Path

from trainer.shared.config import TrainConfig

TASK_VARIABLE = "PNAS_WORKER_TASK"


@dataclass(frozen=True)
class WorkerTask:
    """The worker's place among the ranks, and the run. The defaults are a job of one process on a CPU."""

    config: TrainConfig
    run: Path
    """The run's output folder."""
    device: str = "cpu"
    """`npu`, `cuda` or `cpu`."""
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    """Processes on this node."""
    master_port: int = 0
    command: tuple[str, ...] = ()
    """The command line that started the run, for its provenance."""
    attempt: int = 1
    """The number of this start of the run, counted from 1; it is part of the names of each attempt's files."""
    checkpoint: Path | None = None
    """The verified training state to continue from; None starts at the first step."""

    def to_json(self) -> str:
        """Return the environment variable's text."""
        # Only the options that were set: weights may set others.
        config = self.config.model_dump(mode="json", exclude_unset=True)
        checkpoint = None if self.checkpoint is None else str(self.checkpoint)
        values = {**self.__dict__, "config": config, "run": str(self.run), "checkpoint": checkpoint}
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str) -> "WorkerTask":
        """Return the task that `to_json` has written."""
        values = json.loads(text)
        config, run, command = TrainConfig(**values["config"]), Path(values["run"]), tuple(values["command"])
        checkpoint = None if values["checkpoint"] is None else Path(values["checkpoint"])
        return cls(**{**values, "config": config, "run": run, "command": command, "checkpoint": checkpoint})
