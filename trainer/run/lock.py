"""Let one process at a time work in a run's folder: OUT/<run>/run.lock names it and shows that it is alive.

Two trainers in one folder would overwrite each other's checkpoints. File locks (flock) do not hold between machines on
many network file systems, and on others they vanish unnoticed. So the lock is a file: made by link(2), which is atomic
on NFS too, and touched every few seconds. A process that finds a lock checks its owner's pid on the same machine, and
elsewhere watches for a touch; it takes over a lock that no process touches. It never compares two machines' clocks.

A cluster starts a pod's successor when it has given up the pod, but a pod whose node is cut off from the cluster trains
on. Its successor then asks it by a file next to the lock to save and to leave, and waits.
"""

import contextlib
import errno
import json
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from trainer.records.lease import LOCK_FILE, UNKNOWN_OWNER, Lease, Owner
from trainer.shared.errors import FolderTakenError, StoppedError, TrainerError
from trainer.shared.files import replacing, writing
from trainer.shared.processes import Process, is_alive, is_hidden

REQUEST_FILE = f"{LOCK_FILE}.request"
"""A successor's request to the lock's owner: the owner's token, and the successor."""
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@dataclass(frozen=True)
class Pace:
    """Seconds between the heartbeats, and the waits that follow from them.

    Attributes:
        watch_s: How long to watch another machine's lock: four heartbeats, as a loaded file server can delay some.
        settle_s: How long to wait after a take-over: others that saw the same stale lock may still be about to move it.
        handover_s: How long an earlier pod of the same job can take to save and leave, until its successor gives up.
    """

    heartbeat_s: float = 5.0
    watch_s: float = 20.0
    settle_s: float = 1.0
    handover_s: float = 600.0
    poll_s: float = 0.25


@contextlib.contextmanager
def locked(
    run: Path,
    *,
    command: Sequence[str],
    on_note: Callable[[str], None],
    on_lost: Callable[[TrainerError], None],
    on_asked: Callable[[], None] = lambda: None,
    pace: Pace = Pace(),
) -> Iterator[Lease]:
    """Hold `run`'s lock; yield the lease that each write in the folder asks.

    Args:
        command: The command line of this process; other processes show it when they find the lock.
        on_note: Called with lines for the user: what is waited for, and whose stale lock was taken over.
        on_lost: Called from another thread when another process has the lock; the caller must then end.
        on_asked: Called from another thread when a later pod of this job waits for the folder; save then, and leave.

    Raises:
        FolderTakenError: Another process holds the lock and is alive.
        StoppedError: An earlier pod of the same job holds the lock, and does not leave.
        TrainerError: The lock cannot be written.
    """
    path, owner = run / LOCK_FILE, Owner.this_process(command)
    with writing(path):
        _acquire(path, owner, on_note, pace)
    lease, ended = Lease(run, owner.token), threading.Event()
    lease.prove()
    touch = partial(_touch_until, lease=lease, on_lost=on_lost, on_asked=on_asked, pace=pace)
    keeper = threading.Thread(target=touch, args=(ended, path, owner), name="run lock", daemon=True)
    keeper.start()
    try:
        yield lease
    finally:
        ended.set()
        keeper.join(timeout=pace.heartbeat_s)
        with contextlib.suppress(OSError):
            if _holds(path, _content(owner)):
                _take_away(path, _content(owner))


@dataclass(frozen=True)
class _LockState:
    """A lock file at one moment; if two differ only in `stamp`, the owner has touched the file between them."""

    content: bytes
    stamp: tuple[int, int]

    @property
    def owner(self) -> Owner | None:
        """The owner, or None if the content cannot be read."""
        return Owner.parse(self.content)


def _content(owner: Owner) -> bytes:
    return json.dumps(asdict(owner)).encode()


def _touch_until(
    ended: threading.Event,
    path: Path,
    owner: Owner,
    *,
    lease: Lease,
    on_lost: Callable[[TrainerError], None],
    on_asked: Callable[[], None],
    pace: Pace,
) -> None:
    """Touch the lock until `ended`, and pass on a successor's request. Return if another process has taken the lock."""
    asked = False
    try:
        while not ended.wait(pace.heartbeat_s):
            # If the file server does not answer, no other process can take the lock either.
            with contextlib.suppress(OSError):
                lease.prove()
                os.utime(path)
                if not asked and _is_asked(path, owner):
                    asked = True
                    on_asked()
    except TrainerError as loss:
        on_lost(loss)


def _is_asked(path: Path, owner: Owner) -> bool:
    """Return whether a later pod of the owner's job asks this very owner to leave; an old request asks another one."""
    try:
        token, successor = path.with_name(REQUEST_FILE).read_bytes().split(b"\n", 1)
    except (FileNotFoundError, ValueError):
        return False
    asking = Owner.parse(successor)
    return token.decode(errors="replace") == owner.token and asking is not None and owner.has_job_of(asking)


def _holds(path: Path, content: bytes) -> bool:
    state = _look(path)
    return state is not None and state.content == content


def _acquire(path: Path, owner: Owner, on_note: Callable[[str], None], pace: Pace) -> None:
    mine, content = path.with_name(f".{path.name}.{uuid.uuid4().hex}"), _content(owner)
    try:
        mine.write_bytes(content)
        taken_over = False
        while True:
            if not _link(mine, path):
                state = _look(path)
                if state is None:  # released in between, or hidden by a file server's cache
                    if path.is_symlink():
                        raise TrainerError(f"{path}: is a link to a file that is not there: remove it")
                    time.sleep(pace.poll_s)
                    continue
                if state.content != content:
                    state = _wait_for_end(path, state, owner, on_note, pace)
                    if _remove_stale(path, state):
                        on_note(f"{path}: taken over from {state.owner or UNKNOWN_OWNER}, which is gone")
                        taken_over = True
                    continue
            if not taken_over:
                return
            time.sleep(pace.settle_s)
            if _holds(path, content):
                return
    finally:
        mine.unlink(missing_ok=True)


def _wait_for_end(path: Path, state: _LockState, mine: Owner, on_note: Callable[[str], None], pace: Pace) -> _LockState:
    """Return the lock as it was when its owner was found dead or silent. If it has changed since, look again.

    Raises:
        FolderTakenError: The owner is alive, and no earlier pod of the same job.
        StoppedError: It is one, and does not leave.
    """
    owner = state.owner
    alive = is_here = None if owner is None else _is_alive_here(owner)
    if alive is None:
        on_note(f"{path}: held by {owner or UNKNOWN_OWNER}: watching up to {pace.watch_s:g} s for a sign of life")
        alive = _is_touched(path, state, pace)
    if not alive:
        return state
    if owner is not None and not is_here and owner.has_job_of(mine):
        return _ask_to_leave(path, owner, mine, on_note, pace)
    raise FolderTakenError(
        f"{path.parent}: in use by {owner or UNKNOWN_OWNER}: wait for its end, stop it, or choose another --run-name"
    )


def _ask_to_leave(path: Path, owner: Owner, mine: Owner, on_note: Callable[[str], None], pace: Pace) -> _LockState:
    """Ask the owner, an earlier pod of this job, to save and to leave; return the lock's last state.

    Raises:
        StoppedError: It does not leave.
    """
    on_note(
        f"{path}: {owner.host}, an earlier pod of this job, still works in this folder: it is asked to save and leave, "
        f"which may take up to {pace.handover_s:g} s"
    )
    request, until = path.with_name(REQUEST_FILE), time.monotonic() + pace.handover_s
    with replacing(request, sync=False) as unfinished:
        unfinished.write_bytes(owner.token.encode() + b"\n" + _content(mine))
    try:
        while time.monotonic() < until:
            state = _look(path)
            if state is None or state.owner != owner:
                return state or _LockState(b"", (0, 0))
            if not _is_touched(path, state, pace):
                return state
    finally:
        request.unlink(missing_ok=True)
    raise StoppedError(
        f"{path.parent}: still in use by {owner}, which was asked to leave {pace.handover_s:g} s ago: start the run "
        "again to wait for it"
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
    return _look(path) == state and _take_away(path, state.content)


def _take_away(path: Path, content: bytes) -> bool:
    """Remove the lock if it has this content, and put any other back; return whether it was removed.

    A process can be frozen between a look at the lock and its removal, and find another process's lock then.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return False
    try:
        if _holds(aside, content):
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
