"""What a run leaves behind: its lines, metrics.jsonl, TensorBoard, and result files in the seed's format.

Every rank prints its lines and keeps the seed's table; rank 0 also writes the files that speak for the whole job.
"""

import contextlib
import importlib
import json
import math
import os
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from trainer.config import TrainConfig
from trainer.run_folder import device_folder, writing

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
    """The files of one rank.

    Raises:
        TrainerError: from each method, if its file cannot be written; the line names it.
    """

    def __init__(self, run: Path, config: TrainConfig, *, rank: int, world_size: int) -> None:
        self._run = run
        self._config = config
        self._world_size = world_size
        self._metrics: _Lines | None = None
        self._board: _Board | None = None
        with contextlib.ExitStack() as files:
            self._table = files.enter_context(_Lines(device_folder(run, rank) / f"train_{rank}.log"))
            self._write_row(SEED_COLUMNS)
            if rank == 0:
                self._metrics = files.enter_context(_Lines(run / "metrics.jsonl"))
                self._board = files.enter_context(_Board(run / "tensorboard"))
            self._files = files.pop_all()

    def __enter__(self) -> "Records":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._files.close()

    def steps(self, rows: list[dict[str, Any]]) -> None:
        """Keep the job's metrics of some steps, each with its `global_step`; rank 0 alone has where to."""
        if self._metrics is None or self._board is None:
            return
        self._metrics.write(*(_json({"kind": "step", **row}) for row in rows))
        self._board.write(
            *((f"train/{name}", row[name], row["global_step"]) for row in rows for name in ("loss", "lr")),
        )

    def evaluation(self, row: dict[str, Any]) -> None:
        """Keep an evaluation's figures."""
        if self._metrics is None or self._board is None:
            return
        self._metrics.write(_json({"kind": "eval", **row}))
        self._board.write(*((f"eval/{name}", row[name], row["epoch"]) for name in ("loss", "top1", "top5")))

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
        with writing(path):
            path.write_text("".join(lines), encoding="utf-8")
        return path

    def _write_row(self, cells: tuple[str, ...]) -> None:
        self._table.write("".join(f"{cell}\t" for cell in cells))


class _Lines(contextlib.AbstractContextManager["_Lines"]):
    """A new text file that has every line as soon as it is written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with writing(path):
            self._file: TextIO = path.open("x", encoding="utf-8")

    def write(self, *lines: str) -> None:
        with writing(self._path):
            self._file.write("".join(f"{line}\n" for line in lines))
            self._file.flush()

    def __exit__(self, *_error: object) -> None:
        _close(self._file)


class _Board(contextlib.AbstractContextManager["_Board"]):
    """TensorBoard's scalars. torch's SummaryWriter writes in a thread, whose errors surface late and as tracebacks."""

    def __init__(self, folder: Path) -> None:
        self._event = importlib.import_module("tensorboard.compat.proto.event_pb2").Event
        self._summary = importlib.import_module("tensorboard.compat.proto.summary_pb2").Summary
        record_writer = importlib.import_module("tensorboard.summary.writer.record_writer")
        self._path = folder / f"events.out.tfevents.{time.time():010.0f}.{platform.node()}.{os.getpid()}"
        with writing(self._path):
            folder.mkdir(exist_ok=True)
            self._records = record_writer.RecordWriter(self._path.open("xb"))
            self._records.write(self._event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())

    def write(self, *scalars: tuple[str, float, int]) -> None:
        """Add values, each with its name and step."""
        with writing(self._path):
            for name, value, step in scalars:
                summary = self._summary(value=[self._summary.Value(tag=name, simple_value=value)])
                event = self._event(wall_time=time.time(), step=step, summary=summary)
                self._records.write(event.SerializeToString())
            self._records.flush()

    def __exit__(self, *_error: object) -> None:
        _close(self._records)


def _close(file: Any) -> None:
    # A full disk has been reported by the write that met it; closing meets it again.
    with contextlib.suppress(OSError):
        file.close()


def _json(row: Mapping[str, Any]) -> str:
    """One line of JSON, which has no NaN and no infinity: null stands for them."""
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()
    }
    return json.dumps(finite, allow_nan=False)


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
