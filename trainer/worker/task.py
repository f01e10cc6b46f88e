"""A worker's task from the supervisor: a value that travels as JSON in one environment variable."""

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

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
    listener: int | None = None
    """For rank 0, the descriptor of a socket that listens on `master_port` already; None if torch opens one."""
    command: tuple[str, ...] = ()
    """The command line that started the run, for its provenance."""
    attempt: int = 1
    """The number of this start of the run, counted from 1; it is part of the names of each attempt's files."""
    checkpoint: Path | None = None
    """The verified training state to continue from; None starts at the first step."""
    memory: Path | None = None
    """The folder for snapshots in this node's memory; None for a run without them."""
    snapshots: tuple[Path, ...] = ()
    """This node's verified snapshots: if all nodes have one, and it is newer than the checkpoint, continue from it."""
    lock_token: str = ""
    """The token in the run's lock. Under torchrun only rank 0 is told it, and tells the others."""

    def to_json(self) -> str:
        """Return the environment variable's text."""
        # Only the options that were set: weights may set others.
        # pydantic's own JSON has no escape for the bytes of a path that are not UTF-8.
        return json.dumps(TypeAdapter(WorkerTask).dump_python(self, mode="json", exclude_unset=True))

    @classmethod
    def from_json(cls, text: str) -> "WorkerTask":
        """Return the task that `to_json` has written."""
        return TypeAdapter(cls).validate_python(json.loads(text))
