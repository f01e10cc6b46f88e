"""Each rank says every few seconds where it is, through the store that the process group was made with.

A thread of its own does it, on a connection of its own: a rank that has stopped may hold the store, and a request to a
stopped store waits for ever, whatever timeout it was given.
"""

import threading
import time
from collections.abc import Callable
from datetime import timedelta

# Documented, but not exported in the way that a type checker asks for.
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]  # see above

from trainer.distributed.watchdog.marks import Mark, Peer, post, read_post

POST_S = 5.0
MISSED = 3  # posts that a rank may leave out before it counts as silent
_CONNECT = timedelta(seconds=30)


class Board:
    """What the ranks of a job say of themselves; rank 0's process holds the store."""

    def __init__(self, *, rank: int, world_size: int, address: tuple[str, int], every_s: float = POST_S) -> None:
        """`address` is MASTER_ADDR and MASTER_PORT."""
        self._rank = rank
        self._others = [other for other in range(world_size) if other != rank]
        self._address = address
        self._every_s = every_s
        self._patience_s = MISSED * every_s
        self._heard: dict[int, tuple[str, float]] = {}
        self._read_at: float | None = None
        self._curious_since: float | None = None

    def be_curious(self, wanted: bool) -> None:
        """Begin or cease to read what the others say; a rank that gets on does not need to."""
        if not wanted:
            self._curious_since = None
        elif self._curious_since is None:
            self._curious_since = time.monotonic()

    def run(self, over: threading.Event, here: Callable[[], tuple[Mark | None, float]]) -> None:
        """Post until it is over. `here` gives this rank's mark, and for how many seconds it has been there."""
        number = 0
        try:
            host, port = self._address
            connection = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=_CONNECT)
            store = PrefixStore("watchdog", connection)
            while True:
                mark, waited_s = here()
                store.set(str(self._rank), post(mark, waited_s=waited_s, number=number, now=time.time()))
                if self._curious_since is not None:
                    self._read(store)
                if over.wait(self._every_s):
                    return
                number += 1
        except RuntimeError:
            # The store has gone, and rank 0 with it: the group's own connections say so to everybody at once.
            return

    def peers(self) -> list[Peer]:
        """The other ranks, as far as they have been heard since this rank became curious."""
        now = time.monotonic()
        asked_at = self._curious_since or now
        answered_at = max(asked_at, self._read_at or asked_at)
        if now - answered_at > self._patience_s:
            # What the others said is not to be had; this rank's own connection may be at fault as well.
            return [Peer(0, Mark("the ranks' meeting point"), silent_s=now - answered_at, silent=True)]
        return [self._peer(other, asked_at=asked_at, now=now) for other in self._others]

    def _peer(self, rank: int, *, asked_at: float, now: float) -> Peer:
        if rank not in self._heard:
            return Peer(rank, None)
        text, changed_at = self._heard[rank]
        unchanged_s = now - max(changed_at, asked_at)
        return read_post(rank, text, unchanged_s=unchanged_s, patience_s=self._patience_s, now=time.time())

    def _read(self, store: Store) -> None:
        for rank in self._others:
            if store.check([str(rank)]):
                text = store.get(str(rank)).decode()
                if self._heard.get(rank, ("",))[0] != text:
                    self._heard[rank] = (text, time.monotonic())
        self._read_at = time.monotonic()
