"""TensorBoard's scalars: a small writer whose errors come at once, and whose file can take steps back.

torch's SummaryWriter writes in a thread, whose errors surface late and as tracebacks.
"""

import contextlib
import importlib
import os
import platform
import time
from pathlib import Path

from trainer.run_folder import writing


class Board(contextlib.AbstractContextManager["Board"]):
    """One events file in `folder`.

    Raises:
        TrainerError: from each method, if the file cannot be written; the line names it.
    """

    def __init__(self, folder: Path, *, attempt: int, first_step: int) -> None:
        """Begin a file; what earlier files in `folder` say about `first_step` and later steps no longer counts."""
        events = importlib.import_module("tensorboard.compat.proto.event_pb2")
        self._event, self._session = events.Event, events.SessionLog
        self._summary = importlib.import_module("tensorboard.compat.proto.summary_pb2").Summary
        record_writer = importlib.import_module("tensorboard.summary.writer.record_writer")
        # TensorBoard reads files in the order of their names: attempts within one second, too, have to be in order.
        name = f"events.out.tfevents.{attempt:06d}.{time.time():010.0f}.{platform.node()}.{os.getpid()}"
        self._path = folder / name
        with writing(self._path):
            folder.mkdir(parents=True, exist_ok=True)
            self._records = record_writer.RecordWriter(self._path.open("xb"))
            self._records.write(self._event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        if first_step or attempt > 1:
            self.take_back(first_step)

    def take_back(self, step: int) -> None:
        """Have TensorBoard drop the values of `step` and later ones that were written before."""
        log = self._session(status=self._session.START)
        with writing(self._path):
            self._records.write(self._event(wall_time=time.time(), step=step, session_log=log).SerializeToString())
            self._records.flush()

    def write(self, *scalars: tuple[str, float, int]) -> None:
        """Add values, each with its name and step."""
        with writing(self._path):
            for name, value, step in scalars:
                summary = self._summary(value=[self._summary.Value(tag=name, simple_value=value)])
                event = self._event(wall_time=time.time(), step=step, summary=summary)
                self._records.write(event.SerializeToString())
            self._records.flush()

    def __exit__(self, *_error: object) -> None:
        # A full disk has been reported by the write that met it; closing meets it again.
        with contextlib.suppress(OSError):
            self._records.close()
