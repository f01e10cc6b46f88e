"""TensorBoard's scalars: a small writer that survives a full disk, and whose file can take steps back.

torch's SummaryWriter writes in a thread: its errors surface late and as tracebacks.
"""

import importlib
import io
import os
import platform
import time
from pathlib import Path
from typing import Any

from trainer.records.files import AppendFile, CheckOwner, OnNote, no_owner
from trainer.shared.files import writing


class ScalarFile(AppendFile):
    """One events file in `folder`."""

    def __init__(self, folder: Path, *, attempt: int, on_note: OnNote, check_owner: CheckOwner = no_owner) -> None:
        """Begin a file that TensorBoard reads after the files of earlier attempts.

        Args:
            on_note: Called when the file cannot be written and when it can again.
            check_owner: Called before each write.

        Raises:
            TrainerError: The file cannot be made.
        """
        events = importlib.import_module("tensorboard.compat.proto.event_pb2")
        self._event, self._session = events.Event, events.SessionLog
        self._summary = importlib.import_module("tensorboard.compat.proto.summary_pb2").Summary
        self._framed = importlib.import_module("tensorboard.summary.writer.record_writer").RecordWriter
        # TensorBoard reads files in the order of their names: attempts within one second, too, must be in order.
        name = f"events.out.tfevents.{attempt:06d}.{time.time():010.0f}.{platform.node()}.{os.getpid()}"
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder / name, fresh=True, on_note=on_note, check_owner=check_owner)
        self._add({"file_version": "brain.Event:2"})

    def take_back(self, step: int) -> None:
        """Make TensorBoard drop the values of `step` and later steps that were written before."""
        self._add({"step": step, "session_log": self._session(status=self._session.START)})

    def write_scalars(self, *scalars: tuple[str, float, int]) -> None:
        """Add values, each with its name and step."""
        values = (
            {"step": step, "summary": self._summary(value=[self._summary.Value(tag=name, simple_value=value)])}
            for name, value, step in scalars
        )
        self._add(*values)

    def _add(self, *events: dict[str, Any]) -> None:
        """Add records in TFRecord's framing, through memory: a record that is cut in two would end a reader's file."""
        framed = io.BytesIO()
        writer = self._framed(framed)
        for event in events:
            writer.write(self._event(wall_time=time.time(), **event).SerializeToString())
        self.write(framed.getvalue())
