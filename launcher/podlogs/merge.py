"""Many containers' logs as one stream, in bounded memory, for the one thread that shows them.

Each log is read in a thread of its own and waits while too much lies unread, so that a slow terminal slows the
servers down and fills no memory. Ending it, by Ctrl-C too, wakes all threads at once.
"""

import threading
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Generic, TypeVar

from launcher.podlogs.batch import Batch, Item
from launcher.podlogs.stop import Stop

Key = TypeVar("Key", bound=Hashable)


class Merged(Generic[Key]):
    """The items of all logs with their keys, each log's in order. A context: its end ends all threads.

    Args:
        stop: the one that the logs were made with; set at the end.
        threads: how many logs are read at the same time; more than a job has pods. What is added beyond that waits.
        limit: how many bytes may lie unread.
    """

    def __init__(self, stop: Stop, *, threads: int = 4096, limit: int = 8 << 20) -> None:
        self._stop = stop
        self._limit = limit
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="podlog")
        self._changed = threading.Condition()
        self._items: deque[tuple[Key, Item]] = deque()
        self._size = 0
        self._open: set[Key] = set()
        self._more = True
        self._failed: deque[Future[None]] = deque()

    def add(self, key: Key, log: Iterable[Item]) -> None:
        """Read this log too; from any thread, also while others iterate."""
        with self._changed:
            self._open.add(key)
        self._pool.submit(self._read, key, log).add_done_callback(partial(self._note_end, key))

    def finish(self) -> None:
        """No more logs will be added: iterating ends with the last one's end."""
        with self._changed:
            self._more = False
            self._changed.notify_all()

    @property
    def open(self) -> frozenset[Key]:
        """Whose logs have not come to their end."""
        with self._changed:
            return frozenset(self._open)

    @property
    def ended(self) -> bool:
        """Nothing comes any more."""
        with self._changed:
            return not (self._items or self._failed or self._more or self._open)

    def get(self, timeout_s: float | None = None) -> tuple[Key, Item] | None:
        """The next item; None at the end of all logs, or if nothing came in time.

        Raises:
            PodLogError: what ended a log.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._failed or self.ended, timeout_s)
            if self._items:
                key, item = self._items.popleft()
                self._size -= _size(item)
                self._changed.notify_all()
                return key, item
            if self._failed:
                self._failed.popleft().result()
            return None

    def __iter__(self) -> Iterator[tuple[Key, Item]]:
        """All items until `finish` has been called and all logs have ended."""
        while (found := self.get()) is not None:
            yield found

    def __enter__(self) -> "Merged[Key]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        self._pool.shutdown(cancel_futures=True)

    def _read(self, key: Key, log: Iterable[Item]) -> None:
        for item in log:
            with self._changed:
                # One item always fits, however large it is.
                self._changed.wait_for(lambda: self._size < self._limit or self._stop.is_set())
                if self._stop.is_set():
                    return
                self._items.append((key, item))
                self._size += _size(item)
                self._changed.notify_all()

    def _note_end(self, key: Key, future: "Future[None]") -> None:
        with self._changed:
            self._open.discard(key)
            if not future.cancelled() and future.exception() is not None:
                self._failed.append(future)
            self._changed.notify_all()


def _size(item: Item) -> int:
    return len(item.data) + len(item.stamped) if isinstance(item, Batch) else 0
