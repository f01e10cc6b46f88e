"""The records of a run: its lines, metrics.jsonl, TensorBoard, and result files in the seed's format.

Every rank prints its lines and keeps the seed's table; rank 0 also writes the files about the whole job.
"""

import contextlib
import itertools
import json
import math
import platform
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from trainer.records.files import AppendFile, CheckOwner, no_owner
from trainer.records.folder import device_folder
from trainer.records.tensorboard import ScalarFile
from trainer.shared.attempts import timestamp
from trainer.shared.config import TrainConfig
from trainer.shared.files import writing
from trainer.shared.text import visible

SEED_COLUMNS = ("Learning Rate", "Train Loss", "Valid Loss", "Train Acc.", "Valid Acc.", "Training FPS")

TRAINING_RESULT = "*_acc.log"
"""The pattern of the name of a training's result file."""

BAD_IMAGES = "bad_images.jsonl"

QUIET_S = 30.0
"""How long a rank can print nothing; `kubectl logs -f` must show progress at least once a minute."""

# The network's name in the seed's result files.
NETWORKS = {"pnasnet5large": "PnasNet5Large", "pnasnet5mobile": "PnasNet5Mobile", "pnasnet5tiny": "PnasNet5Tiny"}


def logfmt(event: str, values: Mapping[str, Any]) -> str:
    """Return `step epoch=0 loss=6.91`: the event, then each `key=value` but None; text with spaces is quoted."""
    pairs = (f"{key}={_logfmt_value(value)}" for key, value in values.items() if value is not None)
    return " ".join([visible(event), *pairs])


def say(event: str, **values: Any) -> None:
    """Print one line; values get the time. The supervisor tags and numbers it."""
    sys.stdout.write(logfmt(event, {**values, **_time()} if values else {}) + "\n")
    sys.stdout.flush()


class Heartbeat:
    """A line from time to time from a run with slow steps, so that it does not look stuck."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()

    def reset(self) -> None:
        """Note that the run has just printed another line about its position."""
        self._last = self._clock()

    def write(self, **position: Any) -> None:
        """Print the position if the run has been quiet for a while. This waits for no device."""
        if self._clock() - self._last >= QUIET_S:
            say("alive", **position)
            self.reset()


@dataclass(frozen=True)
class SavedExtent:
    """What a checkpoint holds.

    Attributes:
        steps: steps since the run's beginning.
        epochs: epochs with their evaluation.
        epoch_steps: how many of `steps` belong to the epoch whose evaluation is still to come.
    """

    steps: int
    epochs: int
    epoch_steps: int = 0

    def holds(self, line: bytes) -> bool:
        """Return whether a line of `metrics.jsonl` is about one of them, or about a fact that stays true."""
        match _row(line):
            case {"kind": "corruption" | "attempt" | "hardware"}:
                return True
            case {"kind": "eval", "epoch": int(epoch)}:
                return epoch < self.epochs
            case {"global_step": int(step)}:
                return step < self.steps
        return False


class Records(contextlib.AbstractContextManager["Records"]):
    """The files of one rank.

    On a full disk, lines wait in memory and a warning is printed; `sync` raises an error if they still wait.
    """

    def __init__(
        self,
        run: Path,
        config: TrainConfig,
        *,
        rank: int,
        world_size: int,
        saved: SavedExtent | None = None,
        attempt: int = 1,
        check_owner: CheckOwner = no_owner,
    ) -> None:
        """Open the files of `rank`.

        Args:
            saved: The extent of the checkpoint that this attempt continues from; None if it begins at the first step.
            attempt: The number of this start of the run. The first one finds no files. A later one continues its files;
                lines that it will write again move to `metrics-replaced.jsonl` and `train_<rank>-replaced.log`.
            check_owner: Called before each write to a file.

        Raises:
            TrainerError: A file cannot be opened, or the disk has no room for its first lines; the line names it.
        """
        self._run = run
        self._config = config
        self._world_size = world_size
        self._attempt = attempt
        self._check_owner = check_owner
        self._table_path = device_folder(run, rank) / f"train_{rank}.log"
        self._metrics: AppendFile | None = None
        self._bad: AppendFile | None = None
        self._boards: dict[str, ScalarFile] = {}
        self._rewinding = threading.Lock()
        fresh, append = attempt == 1, partial(AppendFile, on_note=_warn, check_owner=check_owner)
        with contextlib.ExitStack() as files:
            self._table = files.enter_context(append(self._table_path, fresh=fresh))
            if rank == 0:
                self._metrics = files.enter_context(append(run / "metrics.jsonl", fresh=fresh))
                for name in ("train", "eval"):
                    self._boards[name] = ScalarFile(
                        run / "tensorboard" / name, attempt=attempt, on_note=_warn, check_owner=check_owner
                    )
                    files.push(self._boards[name])
            if not fresh:
                self.rewind(saved or SavedExtent(steps=0, epochs=0))
            if not self._table_path.stat().st_size:
                self._write_row(SEED_COLUMNS)
            if rank == 0 and config.on_bad_image == "skip":
                listed = run / BAD_IMAGES
                self._bad = files.enter_context(append(listed, fresh=False))
                rows = map(_row, listed.read_bytes().splitlines())
                self._known_bad = {str(row["path"]) for row in rows if row is not None and "path" in row}
                if listed.read_bytes()[-1:] not in {b"", b"\n"}:
                    self._bad.write_lines("")  # ends a line that a crash has torn
            # A disk that is full before the first step has cost nothing yet: stop, instead of training without records.
            self.sync()
            self._files = files.pop_all()

    def __exit__(self, *_error: object) -> None:
        self._files.close()

    def write_steps(
        self,
        rows: list[dict[str, Any]],
        *,
        fps: float | None = None,
        top1: float | None = None,
        left: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """Write the job's metrics of some steps, each with its `global_step`; ranks other than 0 write nothing.

        The rows of steps are the same in each repetition of a run. The time and the figures of all these steps together
        are not, so another row has them: `progress`, with the last step.

        Args:
            fps: images per second of the whole job.
            top1: accuracy in percent on the training images.
            left: the share of the run that is done and the time that it still takes, by their names in the row.
        """
        if self._metrics is None:
            return
        figures = {name: value for name, value in (("fps", fps), ("top1", top1)) if value is not None}
        self._metrics.write_lines(
            *(_json({"kind": "step", **row}) for row in rows),
            _json({"kind": "progress", **_time(), "global_step": rows[-1]["global_step"], **figures, **left}),
        )
        self._boards["train"].write_scalars(
            *((f"train/{name}", row[name], row["global_step"]) for row in rows for name in ("loss", "lr")),
            *((f"train/{name}", value, rows[-1]["global_step"]) for name, value in figures.items()),
        )

    def write_left(self, left: Mapping[str, float], *, fps: float | None) -> None:
        """Write how far a run is that only evaluates, and has no steps; ranks other than 0 write nothing."""
        if self._metrics is not None:
            figures = {} if fps is None else {"fps": fps}
            self._metrics.write_lines(_json({"kind": "progress", **_time(), **figures, **left}))

    def write_times(self, row: Mapping[str, Any], *, steps: int) -> None:
        """Write where the time of the first `steps` steps of the run went since the row before; only rank 0 does it.

        The times of some steps are known with the steps after them. A run that only evaluates has no steps.
        """
        if self._metrics is not None:
            step = {"global_step": steps - 1} if steps else {}
            self._metrics.write_lines(_json({"kind": "time", **_time(), **step, **row}))

    def write_attempts(self, attempts: Sequence[Mapping[str, Any]]) -> None:
        """Write that an attempt begins, the last of `attempts`, and how the one before it ended."""
        if self._metrics is not None and attempts and attempts[-1]["attempt"] == self._attempt:
            *earlier, own = attempts
            ended = {"ended": earlier[-1]} if earlier else {}
            self._metrics.write_lines(_json({"kind": "attempt", **_time(), **own, **ended}))

    def write_evaluation(self, row: dict[str, Any], *, steps: int) -> None:
        """Write an evaluation's figures after `steps` steps of the run; TensorBoard shows them at the last of these."""
        if self._metrics is None:
            return
        self._metrics.write_lines(_json({"kind": "eval", **row, **_time()}))
        self._boards["eval"].write_scalars(
            *((f"eval/{name}", row[name], max(steps - 1, 0)) for name in ("loss", "top1", "top5"))
        )

    def write_corruption(self, row: dict[str, Any]) -> None:
        """Write which rank's state was wrong, and what the run did then; ranks other than 0 write nothing."""
        if self._metrics is not None:
            self._metrics.write_lines(_json({"kind": "corruption", **row, **_time()}))

    def write_hardware(self, samples: Sequence[Mapping[str, Any]]) -> None:
        """Write samples of the hardware, which have their own time; another thread may do it."""
        with self._rewinding:
            if self._metrics is not None:
                self._metrics.write_lines(*(_json({"kind": "hardware", **sample}) for sample in samples))

    def write_epoch(
        self, *, lr: float, train_loss: float, valid_loss: float, train_top1: float, valid_top1: float, fps: float
    ) -> None:
        """Add a row to the seed's table."""
        self._write_row(tuple(f"{value:.6f}" for value in (lr, train_loss, valid_loss, train_top1, valid_top1, fps)))

    def write_result(self, *, fps: float | None, top1: float | None, loss: float | None, wall_s: float) -> Path | None:
        """Write the seed's result file on rank 0: `_acc` if there is an accuracy, else `_perf`; return its path.

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
        self._check_owner()
        with writing(path):
            path.write_text("".join(lines), encoding="utf-8")
        return path

    def list_bad_images(self, rows: list[dict[str, Any]]) -> None:
        """List skipped images on rank 0, each once under its `path` over all attempts."""
        if self._bad is None:
            return
        new = {row["path"]: row for row in rows if row["path"] not in self._known_bad}
        self._known_bad |= new.keys()
        self._bad.write_lines(*map(_json, new.values()))

    def rewind(self, saved: SavedExtent) -> None:
        """Go back to a checkpoint: move the lines after it to the files of replaced lines."""
        with self._rewinding:
            self._rewind(saved)

    def _rewind(self, saved: SavedExtent) -> None:
        rows = itertools.count()
        # The header is the row before the first epoch's.
        replaced = self._table_path.with_name(f"{self._table_path.stem}-replaced.log")
        self._table.replace(lambda _row: next(rows) <= saved.epochs, replaced)
        if self._metrics is not None:
            self._metrics.replace(saved.holds, self._run / "metrics-replaced.jsonl", self._replaced)
            self._boards["train"].take_back(saved.steps)
            self._boards["eval"].take_back(saved.steps - saved.epoch_steps)

    def sync(self) -> None:
        """Wait until the disk has all records: a checkpoint must not know of steps that the records lack.

        Raises:
            TrainerError: The disk does not take a file; the line names it.
        """
        for file in self._all_files():
            file.sync()

    @property
    def is_written(self) -> bool:
        """Whether the system has taken all lines, so that they stay even if this process is killed."""
        return all(file.is_written for file in self._all_files())

    def _all_files(self) -> list[AppendFile]:
        files = (self._table, self._metrics, self._bad, *self._boards.values())
        return [file for file in files if file is not None]

    def _replaced(self, line: bytes) -> bytes:
        row = _row(line) or {"torn": line.decode(errors="replace")}
        return _json({"attempt": self._attempt, **row}).encode()

    def _write_row(self, cells: tuple[str, ...]) -> None:
        self._table.write_lines("".join(f"{cell}\t" for cell in cells))


def _json(row: Mapping[str, Any]) -> str:
    """Return one line of JSON, with null for NaN and infinity, which JSON lacks."""
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()
    }
    return json.dumps(finite, allow_nan=False)


def _time() -> dict[str, str]:
    return {"time": timestamp(time.time())}


def _warn(text: str) -> None:
    say("warning", text=text)


def _row(line: bytes) -> dict[str, Any] | None:
    """Return the table of a line of JSON, or None for a line that a crash has torn."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _logfmt_value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = visible(str(value))
    return json.dumps(text, ensure_ascii=False) if not text or any(c in text for c in ' "=\n') else text


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
