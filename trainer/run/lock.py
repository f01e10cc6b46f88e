"""One process works in a run's folder at a time: OUT/<run>/run.lock says which, and shows that it lives.

Two trainers in one folder would overwrite each other's checkpoints. File locks (flock) do not hold between machines on
many network file systems and vanish unseen on others, so the lock is a file: made by link(2), which is atomic on NFS
too, and touched every few seconds. Whoever finds it decides by the process's id on the same machine, and elsewhere by
watching for a touch; a lock that nobody keeps is taken over. Clocks of two machines are never compared.
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

from trainer.shared.errors import ConflictError
from trainer.shared.files import writing

LOCK_FILE = "run.lock"
HEARTBEAT_S = 5.0
# Four heartbeats: a loaded file server may well delay one or two.
WATCH_S = 20.0
POLL_S = 0.25
# After a take-over: others that had judged the same stale lock may still be about to move it.
SETTLE_S = 1.0
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@dataclass(frozen=True)
class Owner:
    """A process that holds a lock, as it describes itself.

    `boot` and `namespace` say where `pid` means something; `ticks`, when the process began, tells it from a later one
    of the same id. `token` makes every lock unlike any other.
    """

    host: str
    boot: str
    namespace: str
    pid: int
    ticks: int
    started: str
    command: str
    token: str

    @classmethod
    def this_process(cls, command: Sequence[str]) -> "Owner":
        """The process that asks."""
        return cls(
            host=platform.node(),
            boot=_text(Path("/proc/sys/kernel/random/boot_id")),
            namespace=_namespace(),
            pid=os.getpid(),
            ticks=_ticks(os.getpid()) or 0,
            started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            command=" ".join(command),
            token=uuid.uuid4().hex,
        )

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.started} ({self.command})"


@dataclass(frozen=True)
class Pace:
    """Seconds between the heartbeats, and what follows from them."""

    heartbeat_s: float = HEARTBEAT_S
    watch_s: float = WATCH_S
    settle_s: float = SETTLE_S


class RunLock:
    """A lock that is held. `lost` becomes true when another process has taken it."""

    def __init__(self, path: Path, content: bytes) -> None:
        self.lost = False
        self._path = path
        self._content = content

    def keep(self, ended: threading.Event, on_lost: Callable[[str], None], heartbeat_s: float) -> None:
        """Touch the lock until `ended`, or until it is no longer this process's: then say so to `on_lost`, and return.

        A machine that was suspended comes back to a run that another one has continued meanwhile.
        """
        while not ended.wait(heartbeat_s):
            try:
                if self._is_mine():
                    os.utime(self._path)
                    continue
                # Another process that judged an older lock may have moved this one, and be about to put it back.
                if ended.wait(POLL_S) or self._is_mine():
                    continue
                owner = _owner_of(_look(self._path))
            except OSError:  # the file server does not answer: nobody can take the lock either
                continue
            self.lost = True
            on_lost(f"{self._path}: lost to {owner or 'whoever removed it'}: this run ends, to spoil nothing")
            return

    def release(self) -> None:
        """Remove the lock, unless it is another's by now."""
        with contextlib.suppress(OSError):
            if self._is_mine():
                self._path.unlink()

    def _is_mine(self) -> bool:
        seen = _look(self._path)
        return seen is not None and seen.content == self._content


@contextlib.contextmanager
def locked(
    run: Path,
    *,
    command: Sequence[str],
    on_note: Callable[[str], None],
    on_lost: Callable[[str], None],
    pace: Pace = Pace(),
) -> Iterator[RunLock]:
    """Hold `run`'s lock.

    Args:
        command: what this process is, for whoever finds the lock.
        on_note: told what is waited for, and whose stale lock was taken over.
        on_lost: told, from another thread, that the lock is another's; the caller then has to end.

    Raises:
        ConflictError: another process, which lives, holds it.
        TrainerError: it cannot be written.
    """
    path = run / LOCK_FILE
    content = json.dumps(asdict(Owner.this_process(command))).encode()
    with writing(path):
        _acquire(path, content, on_note, pace)
    lock, ended = RunLock(path, content), threading.Event()
    keeper = threading.Thread(target=lock.keep, args=(ended, on_lost, pace.heartbeat_s), name="run lock", daemon=True)
    keeper.start()
    try:
        yield lock
    finally:
        ended.set()
        keeper.join(timeout=pace.heartbeat_s)
        lock.release()


@dataclass(frozen=True)
class _Seen:
    """A lock file at one moment; a difference in `stamp` alone is a heartbeat."""

    content: bytes
    stamp: tuple[int, int]


def _acquire(path: Path, content: bytes, on_note: Callable[[str], None], pace: Pace) -> None:
    mine = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        mine.write_bytes(content)
        taken_over = False
        while True:
            if not _link(mine, path):
                seen = _look(path)
                if seen is None:  # released in between, or hidden by a file server's cache
                    time.sleep(POLL_S)
                    continue
                if seen.content != content:
                    _refuse_if_alive(path, seen, on_note, pace)
                    if _remove_stale(path, seen):
                        on_note(f"{path}: taken over from {_owner_of(seen) or 'a process unknown'}, which is gone")
                        taken_over = True
                    continue
            if not taken_over:
                return
            time.sleep(pace.settle_s)
            seen = _look(path)
            if seen is not None and seen.content == content:
                return
    finally:
        mine.unlink(missing_ok=True)


def _refuse_if_alive(path: Path, seen: _Seen, on_note: Callable[[str], None], pace: Pace) -> None:
    owner = _owner_of(seen)
    alive = None if owner is None else _lives_here(owner)
    if alive is None:
        on_note(f"{path}: held by {owner or 'a process unknown'}: watching up to {pace.watch_s:g} s whether it lives")
        alive = _beats(path, seen, pace.watch_s)
    if alive:
        raise ConflictError(
            f"{path.parent}: in use by {owner or 'a process unknown'}: wait for its end, stop it, or choose another "
            "--run-name"
        )


def _lives_here(owner: Owner) -> bool | None:
    """Whether the owner runs on this machine; None where its process id means nothing here."""
    here = (platform.node(), _text(Path("/proc/sys/kernel/random/boot_id")), _namespace())
    if not all(here) or here != (owner.host, owner.boot, owner.namespace):
        return None
    if not _text(Path(f"/proc/{owner.pid}/stat")) and _exists(owner.pid):
        return None  # another user's, in a /proc that hides it
    return _ticks(owner.pid) == owner.ticks


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _beats(path: Path, first: _Seen, watch_s: float) -> bool:
    """Whether the lock is touched within `watch_s`. Each look opens it anew, as NFS asks the server only then."""
    # In rounds, not by the clock: while a file server is away, no owner can touch its lock.
    for _ in range(math.ceil(watch_s / POLL_S)):
        time.sleep(POLL_S)
        seen = _look(path)
        if seen is None or seen.content != first.content:
            return False  # released, or another's: the caller looks again
        if seen.stamp != first.stamp:
            return True
    return False


def _remove_stale(path: Path, seen: _Seen) -> bool:
    """Remove the lock that was judged stale, and no other: what is not it is put back."""
    now = _look(path)
    if now != seen:
        return False
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return False
    moved = _look(aside)
    try:
        if moved is not None and moved.content == seen.content:
            return True
        _link(aside, path)
        return False
    finally:
        aside.unlink()


def _link(source: Path, path: Path) -> bool:
    """Make `path` a lock with the content of `source`; false if there is one already."""
    try:
        path.hardlink_to(source)
    except FileExistsError:
        # An NFS server may have made the link and its answer got lost: the repeated request then fails.
        return source.stat().st_nlink == 2
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        try:
            with path.open("xb") as file:
                file.write(source.read_bytes())
        except FileExistsError:
            return False
    return True


def _look(path: Path) -> _Seen | None:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            return _Seen(file.read(), (status.st_mtime_ns, status.st_ino))
    except FileNotFoundError:
        return None


def _owner_of(seen: _Seen | None) -> Owner | None:
    """None where the lock says nothing that can be read."""
    try:
        return None if seen is None else Owner(**json.loads(seen.content))
    except (ValueError, TypeError):
        return None


def _ticks(pid: int) -> int | None:
    """Clock ticks from the machine's start to the process's; None if it has ended or cannot be seen."""
    # The name, in brackets, may hold anything: what follows the last bracket is fields from the third on (proc(5)).
    fields = _text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return int(fields[19]) if len(fields) > 19 and fields[0] not in ("Z", "X") else None


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
