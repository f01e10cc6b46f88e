"""One container's log, from its first line to its last, each once, whatever happens to the connection.

A thread reads what has been written, then follows; after every end of the stream it asks what became of the container,
since an end may also be a kubelet that restarts or a proxy that has had enough. What comes again is left out by the
`Window`; what can no longer be had is announced. The end is the container's, never the stream's.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone

from launcher.errors import LauncherError, UnreachableError
from launcher.kube.stream import RefusedStreamError
from launcher.podlogs.batch import CAUGHT_UP, Batch, Item, LogGap, batch_of
from launcher.podlogs.window import Window

_FIRST_DELAY_S, _LAST_DELAY_S = 0.2, 5.0
_PUT_S = 0.2
# The kubelet takes whole seconds, and stamps are now and then out of order.
_OVERLAP_NS = 2_000_000_000


@dataclass(frozen=True)
class ContainerState:
    """What the cluster says of one container instance now.

    Attributes:
        ended: it has terminated: nothing more will be written.
        gone: its pod is no more: nothing can be read.
        previous: another instance of the container has begun since.
    """

    ended: bool = False
    gone: bool = False
    previous: bool = False


@dataclass(frozen=True)
class Source:
    """Where a container's log comes from.

    Attributes:
        open: sends a log request with these parameters and gives the answer piece by piece.
        state: the container's, as far as is known now.
        follow: go on until it has ended.
        since_s: begin with the lines of the last so many seconds.
    """

    open: Callable[[Mapping[str, str]], Iterator[bytes]]
    state: Callable[[], ContainerState]
    follow: bool
    since_s: float | None = None


class ContainerLog:
    """Reads one container instance's log in a thread of its own, into a queue that all share.

    Args:
        key: comes with each item.
        out: holds the thread up when it is full.
    """

    def __init__(
        self, key: str, source: Source, out: "queue.Queue[tuple[str, Item]]", stopped: threading.Event
    ) -> None:
        self._key = key
        self._source = source
        self._out = out
        self._stopped = stopped
        self._window = Window()
        self.caught_up = False
        """All that had been written when it began has been delivered."""
        self.done = False
        """Nothing more will come."""
        self.error: LauncherError | None = None
        """Why it gave up."""
        self._thread = threading.Thread(target=self._run, name=f"log {key}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._read_all()
        except LauncherError as error:
            self.error = error
        finally:
            self._catch_up()
            self.done = True

    def _read_all(self) -> None:
        delay_s = _FIRST_DELAY_S
        while not self._stopped.is_set():
            state = self._source.state()
            if state.gone:
                if b" ended lines=" not in self._window.last_line:  # the trainer's last word; nothing comes after it
                    self._put(LogGap(self._window.newest_ns, None, "its pod is gone"))
                return
            # The first pass reads what there is; so it is known when all of that has come.
            follows = self._source.follow and not state.ended and not state.previous and self.caught_up
            before = self._window.newest_ns
            whole = self._pass(follows=follows, previous=state.previous)
            if whole and not follows:
                self._catch_up()
                if state.ended or state.previous or not self._source.follow:
                    self._finish()
                    return
            if whole and follows and self._window.newest_ns == before:
                # A stream that ends without a line: its container is ending, or somebody in between cuts at once.
                self._stopped.wait(_FIRST_DELAY_S)
            elif not whole:
                delay_s = _FIRST_DELAY_S if self._window.newest_ns != before else min(delay_s * 2, _LAST_DELAY_S)
                self._stopped.wait(delay_s)

    def _pass(self, *, follows: bool, previous: bool) -> bool:
        """One request; whether its answer came to its end."""
        query = {"container": "trainer", "timestamps": "true"}
        query |= {"follow": "true"} if follows else {}
        query |= {"previous": "true"} if previous else {}
        query |= self._since()
        self._window.reopen()
        try:
            for data in self._source.open(query):
                self._deliver(self._window.feed(data))
        except UnreachableError:
            return False
        except RefusedStreamError as refused:
            return self._refused(refused)
        return True

    def _since(self) -> dict[str, str]:
        newest = self._window.newest_ns
        if newest is not None:
            moment = datetime.fromtimestamp((newest - _OVERLAP_NS) // 1_000_000_000, timezone.utc)
            return {"sinceTime": moment.strftime("%Y-%m-%dT%H:%M:%SZ")}
        return {} if self._source.since_s is None else {"sinceSeconds": str(max(1, round(self._source.since_s)))}

    def _refused(self, refused: RefusedStreamError) -> bool:
        """Whether that was the end: a container that has not begun (400) or a server in trouble is asked again."""
        if refused.status in (401, 403):
            raise LauncherError(f"log of {self._key}: HTTP {refused.status}: {refused.body.decode('utf-8', 'replace')}")
        if refused.status == 404 and not self._source.state().gone:
            self._stopped.wait(_FIRST_DELAY_S)
        return False

    def _deliver(self, lines: bytes) -> None:
        if lines:
            self._put(batch_of(lines))
        if self._window.gap:
            self._give_up()

    def _give_up(self) -> None:
        first, last, lines = self._window.accept()
        self._put(LogGap(first, last, "the node no longer has them"))
        if lines:
            self._put(batch_of(lines))

    def _finish(self) -> None:
        """The end of an unfinished line, and what was held back in case it was known."""
        self._deliver(self._window.finish())
        if not self._window.joined:
            # Nothing known came again, and nothing decided that something is missing: what there is is new.
            _, _, lines = self._window.accept()
            if lines:
                self._put(batch_of(lines))

    def _catch_up(self) -> None:
        if not self.caught_up:
            self.caught_up = True
            self._put(CAUGHT_UP)

    def _put(self, item: Batch | LogGap) -> None:
        while not self._stopped.is_set():
            try:
                self._out.put((self._key, item), timeout=_PUT_S)
            except queue.Full:
                continue
            return
