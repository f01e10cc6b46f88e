"""TensorBoard's scalars: a small writer that survives a full disk, and whose file can take steps back.

torch's SummaryWriter writes in a thread, whose errors surface late and as tracebacks.
"""

import contextlib
import importlib
import io
import os
import platform
import time
from pathlib import Path
from typing import Any

from trainer.records.appender import Appender, Tell
from trainer.run.folder import writing


class Board(contextlib.AbstractContextManager["Board"]):
    """One events file in `folder`."""

    def __init__(self, folder: Path, *, attempt: int, first_step: int, tell: Tell) -> None:
        """Begin a file; what earlier files in `folder` say about `first_step` and later steps no longer counts.

        Args:
            tell: told where the file cannot be written, and where it can again.

        Raises:
            TrainerError: it cannot be made.
        """
        events = importlib.import_module("tensorboard.compat.proto.event_pb2")
        self._event, self._session = events.Event, events.SessionLog
        self._summary = importlib.import_module("tensorboard.compat.proto.summary_pb2").Summary
        self._framed = importlib.import_module("tensorboard.summary.writer.record_writer").RecordWriter
        # TensorBoard reads files in the order of their names: attempts within one second, too, have to be in order.
        name = f"events.out.tfevents.{attempt:06d}.{time.time():010.0f}.{platform.node()}.{os.getpid()}"
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._file = Appender(folder / name, fresh=True, tell=tell)
        self._add({"file_version": "brain.Event:2"})
        if first_step or attempt > 1:
            self.take_back(first_step)

    def take_back(self, step: int) -> None:
        """Have TensorBoard drop the values of `step` and later ones that were written before."""
        self._add({"step": step, "session_log": self._session(status=self._session.START)})

    def write(self, *scalars: tuple[str, float, int]) -> None:
        """Add values, each with its name and step."""
        values = (
            {"step": step, "summary": self._summary(value=[self._summary.Value(tag=name, simple_value=value)])}
            for name, value, step in scalars
        )
        self._add(*values)

    def sync(self) -> None:
        """Wait until the disk has everything.

        Raises:
            TrainerError: it does not take it; the line names the file.
        """
        self._file.sync()

    def _add(self, *events: dict[str, Any]) -> None:
        """Records in TFRecord's framing, through memory: a record that is cut in two would end a reader's file."""
        framed = io.BytesIO()
        writer = self._framed(framed)
        for event in events:
            writer.write(self._event(wall_time=time.time(), **event).SerializeToString())
        self._file.write(framed.getvalue())

    def __exit__(self, *_error: object) -> None:
        self._file.__exit__()
