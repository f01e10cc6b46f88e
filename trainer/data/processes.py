"""Loader processes: items made in order by several processes, and one line when one of them dies.

torch's DataLoader does the work. This module shields the training process from its effects on signals, warnings, random
numbers and error messages, and from a lack of shared memory or of open files.
"""

import errno
import os
import pickle
import resource
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils.pin_memory import pin_memory as in_page_locked_memory

from trainer.records.run_records import say
from trainer.shared.container import HIGHER_LIMIT, MORE_FILES, MORE_SHM
from trainer.shared.errors import TrainerError

PREFETCH = 4
FILES, FILES_OF_EACH = 48, 4
"""Files that a process needs for tensors on their way, and those for each loader process."""

_T = TypeVar("_T")


def start_worker(_worker: int) -> None:
    """Set up a loader process: one thread, and signals that leave the decision to the training process."""
    # Ctrl-C reaches the whole process group; the training process answers it and then stops its loaders.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A fork inherits the training process's handler, which would not stop a loader.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    sys.excepthook = _report_error


def _report_error(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Print an uncaught error, unless the training process has closed a connection: that process tells the reason.

    A thread of multiprocessing hands shared memory to the training process, and reports its errors by this hook.
    """
    if not isinstance(error, ConnectionError):
        sys.__excepthook__(kind, error, traceback)


class _Items(Dataset[Any]):
    """Items by key, for torch's DataLoader."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make

    def __getitem__(self, key: Any) -> Any:
        return self._make(key)


@dataclass(frozen=True)
class _Message:
    """A pickled item on its way from a loader process.

    Attributes:
        shortage: Why its tensors are part of the message; None if they are in shared memory.
    """

    content: bytes
    shortage: str | None

    def item(self) -> Any:
        """Return the item; this opens its shared memory.

        Raises:
            EOFError, OSError, RuntimeError: The loader process is gone, or this process has too many open files.
        """
        if self.shortage is not None:
            _warn_once(f"{self.shortage}; until then, loaders send images through pipes, which is slower")
        return pickle.loads(self.content)

    def pin_memory(self) -> Any:
        """Return the item with its tensors in page-locked memory; DataLoader's thread calls it."""
        return in_page_locked_memory(self.item())


class _Messages(_Items):
    """Pickled items by key.

    DataLoader would pickle an item in a thread, which loses the item if shared memory has no room for it.
    """

    def __getitem__(self, key: Any) -> _Message:
        item = super().__getitem__(key)
        try:
            return _Message(bytes(ForkingPickler.dumps(item)), None)
        except (OSError, RuntimeError) as error:  # torch raises the latter for a system call that failed
            too_many_files = os.strerror(errno.EMFILE) in str(error)
            shortage = f"too many open files: {MORE_FILES}" if too_many_files else f"/dev/shm has no room: {MORE_SHM}"
        # Plain pickle copies the tensors.
        return _Message(pickle.dumps(item), shortage)


@cache
def _warn_once(text: str) -> None:
    say("warning", text=text)


def whole_item_loader(
    make: Callable[[Any], _T],
    keys: Sequence[Any],
    *,
    workers: int,
    pin_memory: bool = False,
    start_worker: Callable[[int], None] = start_worker,
) -> Generator[_T]:
    """Yield `make(key)` for each key, in order, made by `workers` processes (0: this one) a few items ahead.

    Raises:
        TrainerError: a loader process cannot start or died, or too many files are open.
    """
    workers = min(workers, len(keys))
    with warnings.catch_warnings():
        # More processes than CPUs are the user's choice, and right if they mostly wait for the disk.
        warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
        loader: DataLoader[Any] = DataLoader(
            _Messages(make) if workers else _Items(make),
            batch_size=None,
            sampler=keys,
            num_workers=workers,
            pin_memory=pin_memory,
            prefetch_factor=PREFETCH if workers else None,
            worker_init_fn=start_worker,
            # The loader draws a seed from it; the default generator is the model's.
            generator=torch.Generator(),
        )
        on_child_death = signal.getsignal(signal.SIGCHLD)
        items = _start(loader)
    if threading.current_thread() is threading.main_thread():
        # torch's handler would raise a loader's death at any place in this process, more than once and with tracebacks.
        # Without the handler `next` notices it, within five seconds.
        signal.signal(signal.SIGCHLD, on_child_death or signal.SIG_DFL)
    try:
        yield from _items_or_death(items)
    finally:
        # A traceback keeps this frame alive, and the loader processes must still end with the iteration.
        del items


def _start(loader: DataLoader[Any]) -> Iterator[Any]:
    """Start the loader processes.

    Raises:
        TrainerError: the system refuses a process, a file, or a semaphore, which is a file in /dev/shm.
    """
    workers = loader.num_workers
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    if workers and limit < open_files + FILES + FILES_OF_EACH * workers:
        raise TrainerError(
            f"{limit} open files are too few for {workers} loader processes: {MORE_FILES}, or lower --workers"
        )
    # A Ctrl-C between a loader's start and `start_worker` would print a traceback, so it is blocked for that time.
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        if workers:
            # If DataLoader cannot make its first queue and event, its cleanup prints a traceback.
            torch.multiprocessing.Queue()
            torch.multiprocessing.Event()
        return iter(loader)
    except OSError as error:
        refusal = error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
    advice = HIGHER_LIMIT.get(refusal.errno or 0, f"/dev/shm cannot take their semaphores: {MORE_SHM}")
    raise TrainerError(
        f"loader processes cannot start ({refusal.strerror}): {advice}; training also works without them (--workers 0)"
    )


def _items_or_death(items: Iterator[Any]) -> Iterator[Any]:
    while True:
        try:
            item = next(items)
            if isinstance(item, _Message):
                item = item.item()
        except StopIteration:
            return
        except (RuntimeError, EOFError, OSError) as error:
            reason = _explain(error)
            if reason is None:
                raise
            break
        yield item
    # Outside the handler: the error's context would keep torch's iterator, and so the other loaders, alive.
    del items
    raise TrainerError(reason)


def _explain(error: Exception) -> str | None:
    """Return one line about an item that did not arrive from a loader process; None for an error of another kind."""
    text = " ".join(str(error).split()) or type(error).__name__
    if os.strerror(errno.EMFILE) in text or "items of ancdata" in text:
        # The latter is Python's error for a file that another process sends, if this one has no room for it.
        return f"too many open files to receive images from loader processes: {MORE_FILES}, or lower --workers"
    # All but the first: a loader that died had announced tensors, and they can no longer be fetched from it.
    if text.startswith("DataLoader worker") or isinstance(error, EOFError | ConnectionError | FileNotFoundError):
        return (
            "a loader process died, which happens when memory or /dev/shm runs out;"
            f" lower --workers or --batch-size, or give the container more of them ({text})"
        )
    return None
