"""Loader processes: items made in order by several processes, and one line when one of them dies.

torch's DataLoader does the work. This module shields the training process from its effects on signals, warnings, random
numbers and error messages.
"""

import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from trainer.shared.errors import TrainerError

PREFETCH = 4

_T = TypeVar("_T")


def start_worker(_worker: int) -> None:
    """Set up a loader process: one thread, and signals that leave the decision to the training process."""
    # Ctrl-C reaches the whole process group; the training process answers it and then stops its loaders.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A fork inherits the training process's handler, which would not stop a loader.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)


class _Items(Dataset[_T]):
    """Items by key, for torch's DataLoader."""

    def __init__(self, make: Callable[[Any], _T]) -> None:
        self._make = make

    def __getitem__(self, key: Any) -> _T:
        return self._make(key)


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
        TrainerError: a loader process died.
    """
    workers = min(workers, len(keys))
    with warnings.catch_warnings():
        # More processes than CPUs are the user's choice, and right if they mostly wait for the disk.
        warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
        loader = DataLoader(
            _Items(make),
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
        # A Ctrl-C between a loader's start and `start_worker` would print a traceback, so it is blocked for that time.
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        items = iter(loader)
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
    if threading.current_thread() is threading.main_thread():
        # torch's handler would raise a loader's death at any place in this process, more than once and with tracebacks.
        # Without the handler `next` notices it, within five seconds.
        signal.signal(signal.SIGCHLD, on_child_death or signal.SIG_DFL)
    try:
        yield from _items_or_death(items)
    finally:
        # A traceback keeps this frame alive, and the loader processes must still end with the iteration.
        del items


def _items_or_death(items: Iterator[_T]) -> Iterator[_T]:
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        # The last three: a loader that died had announced tensors, and they can no longer be fetched from it.
        except (RuntimeError, EOFError, ConnectionError, FileNotFoundError) as error:
            if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            break
        yield item
    # Outside the handler: the error's context would keep torch's iterator, and so the other loaders, alive.
    del items
    raise TrainerError(
        "a loader process died, which happens when memory or /dev/shm runs out;"
        f" lower --workers or --batch-size, or give the container more of them ({reason})"
    )
