"""Let one process at a time work in a run's folder: OUT/<run>/run.lock names it and shows that it is alive.

Two trainers in one folder would overwrite each other's checkpoints. File locks (flock) do not hold between machines on
many network file systems, and on others they vanish unnoticed. So the lock is a file: made by link(2), which is atomic
on NFS too, and touched every few seconds. A process that finds a lock checks its owner's pid on the same machine, and
elsewhere watches for a touch; it takes over a lock that no process touches. It never compares two machines' clocks.
"""

import contextlib
import errno
import json
import math
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.shared.errors import FolderTakenError
from trainer.shared.files import writing
from trainer.shared.processes import Process, identify, is_alive, is_hidden, pid_namespace

LOCK_FILE = "run.lock"
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_UNKNOWN = "an unknown process"


@dataclass(frozen=True)
class Owner:
    """A process that holds a lock, as it describes itself.

    `host`, `namespace` and the boot id in `process_start` say where `pid` has a meaning. `token` makes every lock
    different from any other.
    """

    host: str
    namespace: str
    pid: int
    process_start: str
    started: str
    command: str
    token: str

    @classmethod
    def this_process(cls, command: Sequence[str]) -> "Owner":
        """Describe the calling process."""
        process = identify(os.getpid())
        return cls(
            host=platform.node(),
            namespace=pid_namespace(),
            pid=process.pid,
            process_start=process.started,
            started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            command=" ".join(command),
            token=uuid.uuid4().hex,
        )

    @property
    def place(self) -> tuple[str, str, str]:
        """Where its pid has a meaning; a part is empty where the system does not tell."""
        return self.host, self.namespace, self.process_start.partition(":")[0]

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.started} ({self.command})"


@dataclass(frozen=True)
class Pace:
    """Seconds between the heartbeats, and the waits that follow from them.

    Attributes:
        watch_s: How long to watch another machine's lock: four heartbeats, as a loaded file server can delay some.
        settle_s: How long to wait after a take-over: others that saw the same stale lock may still be about to move it.
    """

    heartbeat_s: float = 5.0
    watch_s: float = 20.0
    settle_s: float = 1.0
    poll_s: float = 0.25


@contextlib.contextmanager
def locked(
    run: Path,
    *,
    command: Sequence[str],
    on_note: Callable[[str], None],
    on_lost: Callable[[str], None],
    pace: Pace = Pace(),
) -> Iterator[None]:
    """Hold `run`'s lock.

    Args:
        command: The command line of this process; other processes show it when they find the lock.
        on_note: Called with lines for the user: what is waited for, and whose stale lock was taken over.
        on_lost: Called from another thread when another process has the lock; the caller must then end.

    Raises:
        FolderTakenError: Another process holds the lock and is alive.
        TrainerError: The lock cannot be written.
    """
    path = run / LOCK_FILE
    content = json.dumps(asdict(Owner.this_process(command))).encode()
    with writing(path):
        _acquire(path, content, on_note, pace)
    ended = threading.Event()
    keeper = threading.Thread(
        target=_touch_until, args=(ended, path, content, on_lost, pace), name="run lock", daemon=True
    )
    keeper.start()
    try:
        yield
    finally:
        ended.set()
        keeper.join(timeout=pace.heartbeat_s)
        with contextlib.suppress(OSError):
            if _holds(path, content):
                path.unlink()


def describe_loss(run: Path) -> str | None:
    """Return that a run's folder is gone; None if it is there."""
    return None if run.is_dir() else f"{run}: this folder was removed or renamed while the run worked in it"


@dataclass(frozen=True)
class _LockState:
    """A lock file at one moment; if two differ only in `stamp`, the owner has touched the file between them."""

    content: bytes
    stamp: tuple[int, int]

    @property
    def owner(self) -> Owner | None:
        """The owner, or None if the content cannot be read."""
        try:
            values = json.loads(self.content)
            if "boot" in values:  # written before version 0.1.0, by a trainer that may still run
                values["process_start"] = f"{values.pop('boot')}:{values.pop('ticks')}"
            return Owner(**values)
        except (ValueError, TypeError, KeyError):
            return None


def _touch_until(
    ended: threading.Event, path: Path, content: bytes, on_lost: Callable[[str], None], pace: Pace
) -> None:
    """Touch the lock until `ended`. If another process has taken it, say so to `on_lost` and return.

    A machine that was suspended can come back to a run that another machine has continued meanwhile.
    """
    while not ended.wait(pace.heartbeat_s):
        try:
            if _holds(path, content):
                os.utime(path)
                continue
            # Another process that judged an older lock may have moved this one, and be about to put it back.
            if ended.wait(pace.poll_s) or _holds(path, content):
                continue
            state = _look(path)
        except OSError:  # the file server does not answer: no other process can take the lock either
            continue
        taker = (state.owner or _UNKNOWN) if state else "a process that removed it"
        on_lost(describe_loss(path.parent) or f"{path}: lost to {taker}: this run ends, to spoil nothing")
        return


def _holds(path: Path, content: bytes) -> bool:
    state = _look(path)
    return state is not None and state.content == content


def _acquire(path: Path, content: bytes, on_note: Callable[[str], None], pace: Pace) -> None:
    mine = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        mine.write_bytes(content)
        taken_over = False
        while True:
            if not _link(mine, path):
                state = _look(path)
                if state is None:  # released in between, or hidden by a file server's cache
                    time.sleep(pace.poll_s)
                    continue
                if state.content != content:
                    _refuse_if_alive(path, state, on_note, pace)
                    if _remove_stale(path, state):
                        on_note(f"{path}: taken over from {state.owner or _UNKNOWN}, which is gone")
                        taken_over = True
                    continue
            if not taken_over:
                return
            time.sleep(pace.settle_s)
            if _holds(path, content):
                return
    finally:
        mine.unlink(missing_ok=True)


def _refuse_if_alive(path: Path, state: _LockState, on_note: Callable[[str], None], pace: Pace) -> None:
    owner = state.owner
    alive = None if owner is None else _is_alive_here(owner)
    if alive is None:
        on_note(f"{path}: held by {owner or _UNKNOWN}: watching up to {pace.watch_s:g} s for a sign of life")
        alive = _is_touched(path, state, pace)
    if alive:
        raise FolderTakenError(
            f"{path.parent}: in use by {owner or _UNKNOWN}: wait for its end, stop it, or choose another --run-name"
        )


def _is_alive_here(owner: Owner) -> bool | None:
    """Return whether the owner runs on this machine, or None if its pid has no meaning here."""
    here = Owner.this_process(()).place
    if not all(here) or here != owner.place or is_hidden(owner.pid):
        return None
    return is_alive(Process(owner.pid, owner.process_start))


def _is_touched(path: Path, first: _LockState, pace: Pace) -> bool:
    """Return whether its owner touches the lock within `pace.watch_s`. Only opening a file makes NFS ask its server."""
    # Count rounds, not time: while a file server is away, no owner can touch its lock.
    for _ in range(math.ceil(pace.watch_s / pace.poll_s)):
        time.sleep(pace.poll_s)
        state = _look(path)
        if state is None or state.content != first.content:
            return False  # released, or another process's: the caller looks again
        if state.stamp != first.stamp:
            return True
    return False


def _remove_stale(path: Path, state: _LockState) -> bool:
    """Remove the lock that was judged stale and put any other back; return whether it was removed."""
    if _look(path) != state:
        return False
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return False
    try:
        if _holds(aside, state.content):
            return True
        _link(aside, path)
        return False
    finally:
        aside.unlink()


def _link(source: Path, path: Path) -> bool:
    """Make `path` a lock with the content of `source`; return False if there is one already."""
    try:
        path.hardlink_to(source)
    except FileExistsError:
        # An NFS server may have made the link while its answer got lost: the repeated request then fails.
        return source.stat().st_nlink == 2
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        try:
            with path.open("xb") as file:
                file.write(source.read_bytes())
        except FileExistsError:
            return False
    return True


def _look(path: Path) -> _LockState | None:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            return _LockState(file.read(), (status.st_mtime_ns, status.st_ino))
    except FileNotFoundError:
        return None
