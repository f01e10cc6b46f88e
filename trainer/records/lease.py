"""Find out, before each write to a run's folder, whether the folder still belongs to this process's run.

A process can be frozen for an hour, by SIGSTOP or with its container or machine, and wake up in a folder in which a
successor works. It must not write there any more. Two walls prevent it:

* Each write first asks the lease, which reads the run's lock unless it has just read it. The clock counts the time in
  which the machine slept.
* A process can be frozen after the question and before the write, and the clocks of a paused virtual machine can stand
  still. So the successor makes such a write reach nothing: it removes the folder through which every checkpoint enters
  and leaves (trainer/checkpoint/writing.py), and replaces the files that it continues by copies
  (trainer/records/files.py).
"""

import json
import os
import platform
import stat
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.shared.errors import FolderTakenError, StoppedError, TrainerError
from trainer.shared.files import NO_ANSWER
from trainer.shared.processes import identify, pid_namespace

LOCK_FILE = "run.lock"
UNKNOWN_OWNER = "an unknown process"
_FRESH_S = 0.25
_SECOND_LOOK_S = 0.25


@dataclass(frozen=True)
class Owner:
    """A process that holds a run's lock, as it describes itself.

    `host`, `namespace` and the boot id in `process_start` say where `pid` has a meaning. `token` makes every lock
    different from any other. `job` is the cluster's job whose pod it is; empty outside of a cluster.
    """

    host: str
    namespace: str
    pid: int
    process_start: str
    started: str
    command: str
    token: str
    job: str = ""

    @classmethod
    def this_process(cls, command: Sequence[str]) -> "Owner":
        """Describe the calling process."""
        process = identify(os.getpid())
        names = os.environ.get("POD_NAMESPACE"), os.environ.get("POD_JOB")
        return cls(
            host=platform.node(),
            namespace=pid_namespace(),
            pid=process.pid,
            process_start=process.started,
            started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            command=" ".join(command),
            token=uuid.uuid4().hex,
            job="/".join(filter(None, names)) if all(names) else "",
        )

    @classmethod
    def parse(cls, content: bytes) -> "Owner | None":
        """Return the owner that a lock names; None if the content cannot be read."""
        try:
            values = json.loads(content)
            if "boot" in values:  # written before version 0.1.0, by a trainer that may still run
                values["process_start"] = f"{values.pop('boot')}:{values.pop('ticks')}"
            return cls(**values)
        except (ValueError, TypeError, KeyError):
            return None

    @property
    def place(self) -> tuple[str, str, str]:
        """Where its pid has a meaning; a part is empty where the system does not tell."""
        return self.host, self.namespace, self.process_start.partition(":")[0]

    def has_job_of(self, other: "Owner") -> bool:
        """Return whether both are pods of one job: the cluster starts a pod again only if it has given up the first."""
        return bool(self.job) and self.job == other.job

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.started} ({self.command})"


def clock_s() -> float:
    """Return seconds on a clock that also counts the time in which this machine slept."""
    # Only Linux has this clock.
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Lease:
    """The right to write to a run's folder: while the run's lock has the token. Safe to use from several threads."""

    def __init__(self, run: Path, token: str, *, clock: Callable[[], float] = clock_s) -> None:
        """Check for the lock with `token`; an empty token stands for a folder without a lock, and every check passes.

        Args:
            clock: Returns seconds.
        """
        self.token = token
        self._lock = run / LOCK_FILE
        self._clock = clock
        self._proved_at = float("-inf")
        self._owner: Owner | None = None

    def check(self) -> None:
        """Return if the folder belonged to the run within the last quarter of a second; this reads the lock if needed.

        Raises:
            OSError, TrainerError: See `prove`.
        """
        if self._clock() - self._proved_at >= _FRESH_S:
            self.prove()

    def prove(self) -> None:
        """Read the lock; return if it is the run's.

        If the file server does not answer, no other process can have taken the lock either. An error of this process
        or machine, such as too many open files, proves nothing: no write may happen until the lock can be read.

        Raises:
            OSError: The lock cannot be read now; the caller can ask again.
            FolderTakenError: Another process has the lock, or the folder is gone.
            StoppedError: A later pod of the same job has the lock, and continues the run.
        """
        if not self.token:
            return
        began = self._clock()
        # Another process that judged an older lock may have moved this one, and be about to put it back.
        for wait_s in (0.0, _SECOND_LOOK_S, _SECOND_LOOK_S):
            time.sleep(wait_s)
            try:
                content = self._lock.read_bytes()
            except FileNotFoundError:
                content = b""
            except OSError as error:
                if error.errno in NO_ANSWER:
                    return
                raise
            if self.token.encode() in content:
                self._proved_at, self._owner = began, Owner.parse(content)
                return
        raise self._loss(content)

    def _loss(self, content: bytes) -> TrainerError:
        taker = Owner.parse(content)
        if taker is not None and self._owner is not None and taker.has_job_of(self._owner):
            return StoppedError(f"{self._lock}: {taker.host}, a later pod of this job, continues the run")
        name = str(taker or UNKNOWN_OWNER) if content else "a process that removed it"
        text = f"{self._lock}: lost to {name}: this run ends, to spoil nothing"
        return FolderTakenError(describe_loss(self._lock.parent) or text)


def describe_loss(run: Path) -> str | None:
    """Return that a run's folder is gone; None if it is there, or if the file server does not tell."""
    try:
        is_gone = not stat.S_ISDIR(run.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        is_gone = True
    except OSError:
        is_gone = False
    return f"{run}: this folder was removed or renamed while the run worked in it" if is_gone else None
