"""What the supervisor tells a worker: a value that travels as JSON in one environment variable."""

import json
from dataclasses import dataclass
from pathlib import Path

from trainer.shared.config import TrainConfig

TASK_VARIABLE = "PNAS_WORKER_TASK"


@dataclass(frozen=True)
class WorkerTask:
    """Who the worker is, and what the run is."""

    config: TrainConfig
    run: Path
    """The run's output folder."""
    device: str
    """`npu`, `cuda` or `cpu`."""
    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    """Processes on this node."""
    master_port: int
    command: tuple[str, ...]
    """The command line that started the run, for its provenance."""
    attempt: int = 1
    """Which start of the run this is, counting from 1; it names the files that each attempt has of its own."""
    checkpoint: Path | None = None
    """The training state to go on from, verified; None begins at the first step."""

    @classmethod
    def alone(cls, config: TrainConfig, run: Path) -> "WorkerTask":
        """Of a job that is one process on this machine's CPU."""
        return cls(
            config=config,
            run=run,
            device="cpu",
            rank=0,
            local_rank=0,
            world_size=1,
            local_world_size=1,
            master_port=0,
            command=(),
        )

    def to_json(self) -> str:
        """The environment variable's text."""
        # Only what was set: weights may bring the rest along.
        config = self.config.model_dump(mode="json", exclude_unset=True)
        checkpoint = None if self.checkpoint is None else str(self.checkpoint)
        values = {**self.__dict__, "config": config, "run": str(self.run), "checkpoint": checkpoint}
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str) -> "WorkerTask":
        """The inverse of `to_json`."""
        values = json.loads(text)
        config, run, command = TrainConfig(**values["config"]), Path(values["run"]), tuple(values["command"])
        checkpoint = None if values["checkpoint"] is None else Path(values["checkpoint"])
        return cls(**{**values, "config": config, "run": run, "command": command, "checkpoint": checkpoint})
