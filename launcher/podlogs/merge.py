"""Many containers' logs as one stream, in bounded memory, for the one thread that shows them.

Each log is read in its own thread, which waits while too much is unread: a slow terminal slows the servers down and
does not fill the memory. The end of the stream, by Ctrl-C too, wakes all threads at once.
"""

import threading
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Generic, TypeVar

from launcher.podlogs.lines import LogPiece
from launcher.podlogs.transport import StopSignal

Key = TypeVar("Key", bound=Hashable)


class MergedLogs(Generic[Key]):
    """The pieces of all logs with their keys, each log's in order. A context: its end ends all threads.

    Args:
        stop: the signal that the logs were given; set at the end.
        threads: how many logs are read at the same time; more than a job has pods. Further logs wait.
        limit: how many bytes may be unread.
    """

    def __init__(self, stop: StopSignal, *, threads: int = 4096, limit: int = 8 << 20) -> None:
        self._stop = stop
        self._limit = limit
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="podlog")
        self._changed = threading.Condition()
        self._pieces: deque[tuple[Key, LogPiece]] = deque()
        self._size = 0
        self._open: set[Key] = set()
        self._expects_more = True
        self._failed: deque[Future[None]] = deque()

    def add(self, key: Key, log: Iterable[LogPiece]) -> None:
        """Read this log too. Any thread may call this, also while another iterates."""
        with self._changed:
            self._open.add(key)
        self._pool.submit(self._read, key, log).add_done_callback(partial(self._note_end, key))

    def finish(self) -> None:
        """Promise that no more logs will be added: iterating then ends with the end of the last log."""
        with self._changed:
            self._expects_more = False
            self._changed.notify_all()

    @property
    def open(self) -> frozenset[Key]:
        """The keys of the logs that have not come to their end."""
        with self._changed:
            return frozenset(self._open)

    @property
    def ended(self) -> bool:
        """Whether nothing comes any more."""
        with self._changed:
            return not (self._pieces or self._failed or self._expects_more or self._open)

    def get(self, timeout_s: float | None = None) -> tuple[Key, LogPiece] | None:
        """Return the next piece; None at the end of all logs, or if nothing came in time.

        Raises:
            PodLogError: the error that ended a log.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._pieces or self._failed or self.ended, timeout_s)
            if self._pieces:
                key, piece = self._pieces.popleft()
                self._size -= _size(piece)
                self._changed.notify_all()
                return key, piece
            if self._failed:
                self._failed.popleft().result()
            return None

    def __iter__(self) -> Iterator[tuple[Key, LogPiece]]:
        """Yield all pieces until `finish` has been called and all logs have ended."""
        while (entry := self.get()) is not None:
            yield entry

    def __enter__(self) -> "MergedLogs[Key]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        self._pool.shutdown(cancel_futures=True)

    def _read(self, key: Key, log: Iterable[LogPiece]) -> None:
        for piece in log:
            with self._changed:
                # One piece always fits, however large it is.
                self._changed.wait_for(lambda: self._size < self._limit or self._stop.is_set())
                if self._stop.is_set():
                    return
                self._pieces.append((key, piece))
                self._size += _size(piece)
                self._changed.notify_all()

    def _note_end(self, key: Key, future: "Future[None]") -> None:
        with self._changed:
            self._open.discard(key)
            if not future.cancelled() and future.exception() is not None:
                self._failed.append(future)
            self._changed.notify_all()


def _size(piece: LogPiece) -> int:
    return len(piece) if isinstance(piece, bytes) else 0
