"""What a run leaves behind: its lines, metrics.jsonl, TensorBoard, and result files in the seed's format.

Every rank prints its lines and keeps the seed's table; rank 0 also writes the files that speak for the whole job.
"""

import json
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from trainer.config import TrainConfig
from trainer.run_folder import device_folder

SEED_COLUMNS = ("Learning Rate", "Train Loss", "Valid Loss", "Train Acc.", "Valid Acc.", "Training FPS")

# The network's name in the seed's result files.
NETWORKS = {"pnasnet5large": "PnasNet5Large", "pnasnet5mobile": "PnasNet5Mobile", "pnasnet5tiny": "PnasNet5Tiny"}


def logfmt(event: str, values: Mapping[str, Any]) -> str:
    """`step epoch=0 loss=6.91`: the event, then `key=value` in order; None is left out, text with spaces is quoted."""
    pairs = (f"{key}={_logfmt_value(value)}" for key, value in values.items() if value is not None)
    return " ".join([event, *pairs])


def say(event: str, **values: Any) -> None:
    """Print one line; the supervisor tags and numbers it."""
    sys.stdout.write(logfmt(event, values) + "\n")
    sys.stdout.flush()


class Records:
    """The files of one rank."""

    def __init__(self, run: Path, config: TrainConfig, *, rank: int, world_size: int) -> None:
        self._run = run
        self._config = config
        self._world_size = world_size
        self._table = (device_folder(run, rank) / f"train_{rank}.log").open("x", encoding="utf-8")
        self._write_row(SEED_COLUMNS)
        self._metrics = (run / "metrics.jsonl").open("x", encoding="utf-8") if rank == 0 else None
        self._board = _open_board(run / "tensorboard") if rank == 0 else None

    def __enter__(self) -> "Records":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._table.close()
        if self._metrics is not None:
            self._metrics.close()
        if self._board is not None:
            self._board.close()

    def steps(self, rows: list[dict[str, Any]]) -> None:
        """Keep the job's metrics of some steps, each with its `global_step`; rank 0 alone has where to."""
        if self._metrics is None or self._board is None:
            return
        for row in rows:
            self._metrics.write(json.dumps({"kind": "step", **row}) + "\n")
            for name in ("loss", "lr"):
                self._board.add_scalar(f"train/{name}", row[name], row["global_step"])
        self._metrics.flush()

    def evaluation(self, row: dict[str, Any]) -> None:
        """Keep an evaluation's figures."""
        if self._metrics is None or self._board is None:
            return
        self._metrics.write(json.dumps({"kind": "eval", **row}) + "\n")
        self._metrics.flush()
        for name in ("loss", "top1", "top5"):
            self._board.add_scalar(f"eval/{name}", row[name], row["epoch"])

    def epoch(
        self, *, lr: float, train_loss: float, valid_loss: float, train_top1: float, valid_top1: float, fps: float
    ) -> None:
        """Add a row to the seed's table."""
        self._write_row(tuple(f"{value:.6f}" for value in (lr, train_loss, valid_loss, train_top1, valid_top1, fps)))

    def result(self, *, fps: float | None, top1: float | None, loss: float | None, wall_s: float) -> Path | None:
        """Write the seed's result file: `_acc` where there is an accuracy, else `_perf`. Rank 0 alone.

        TrainingTime is the milliseconds of one step of the global batch.
        """
        if self._metrics is None:
            return None
        batch, network = self._config.batch_size, NETWORKS[self._config.model]
        case = f"{network}_bs{batch}_{self._world_size}p_{'perf' if top1 is None else 'acc'}"
        values = {
            "Network": network,
            "RankSize": self._world_size,
            "BatchSize": batch,
            "DeviceType": platform.machine(),
            "CaseName": case,
            "ActualFPS": _round(fps),
            "TrainingTime": _round(1000 * batch * self._world_size / fps if fps else None),
            "TrainAccuracy": _round(top1),
            "ActualLoss": _round(loss),
            "E2ETrainingTime": round(wall_s),
        }
        path = self._run / f"{case}.log"
        lines = [f"{key} = {value}\n" for key, value in values.items() if value is not None]
        path.write_text("".join(lines), encoding="utf-8")
        return path

    def _write_row(self, cells: tuple[str, ...]) -> None:
        self._table.write("".join(f"{cell}\t" for cell in cells) + "\n")
        self._table.flush()


def _open_board(folder: Path) -> Any:
    # Imported here: it takes about a second, which only rank 0 has to pay.
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415

    return SummaryWriter(str(folder))


def _logfmt_value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if not text or any(c in text for c in ' "=\n') else text


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def timestamp(seconds: float) -> str:
    """Seconds since the epoch as ISO 8601 in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
