"""The log of one container instance, from its first line to its last, through every cut of the connection.

Two sources are brought together. The stream has the lines, and its end means nothing. The pod's status, which the
caller keeps up to date, says where the instance is in its life. So whatever ends a stream, the status is asked what to
do: go on following, read the rest of an ended instance until nothing is left, read it as the container's previous log
after a restart, or give up with a notice of what is lost. A loss that a kubelet's rotation causes inside a stream that
is never cut cannot be seen here; only numbered lines prove that there is none.
"""

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from datetime import datetime, timezone

from launcher.kube.place import Credentials
from launcher.kube.retry import Backoff
from launcher.podlogs.batch import CAUGHT_UP, Item, LogGap, batch_of
from launcher.podlogs.errors import LogRefusedError, LogRetry, PodLogError, ReadStoppedError, Timing
from launcher.podlogs.state import ContainerState, Instance, Place, end_of, may_have_begun, place_of
from launcher.podlogs.stop import Stop
from launcher.podlogs.transport import Answer, Transport
from launcher.podlogs.window import SPAN_NS, Window

_LONGEST_PAUSE_S = 2.0
_NOT_LOGGED_IN = 401
_UNSERVED = "the server no longer has what came before: the log was rotated while the connection was cut"
_LOST = {
    Place.GONE: "the pod was deleted before its log had been read to the end",
    Place.NEVER: "its node has failed the pod, and forgotten its container",
    Place.OVERWRITTEN: "the container restarted twice before its log had been read to the end",
}


class ContainerLog:
    """Iterated over once: the instance's lines as batches, and a gap wherever lines are or may be missing.

    Args:
        state: what is known of the container now; asked often, so it answers from memory.
        follow: until the instance has ended, or the pod is gone; else only what has been written so far.
        since_s: only about the lines of the last so many seconds.
        log_in_again: gives other credentials than those that were refused.
        is_there: asks the server whether the pod of that name is still this one. Volcano makes pods anew under the same
            name, and a log is asked for by name.
    """

    def __init__(
        self,
        credentials: Credentials,
        instance: Instance,
        state: Callable[[], ContainerState],
        stop: Stop,
        *,
        follow: bool = True,
        since_s: float | None = None,
        timing: Timing | None = None,
        log_in_again: Callable[[Credentials], Credentials] | None = None,
        is_there: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._credentials = credentials
        self._instance = instance
        self._state = state
        self._stop = stop
        self._follow = follow
        self._since_s = since_s
        self._log_in_again = log_in_again
        self._is_there = is_there
        self._timing = timing or Timing()
        self._clock = clock
        self._retry = LogRetry(self._timing, Backoff(clock))
        self._window = Window()
        self._began = clock()
        self._empty = 0
        self._caught_up = False
        # An ended instance's log came to its end; whether that was truly its last line is asked for next.
        self._unverified = False
        self._complete = False
        self._has_begun = False

    def __iter__(self) -> Iterator[Item]:
        """All there is.

        Raises:
            PodLogError: the server refuses, or is out of reach for too long.
        """
        timing = self._timing
        transport = Transport(self._credentials, self._stop, connect_s=timing.connect_s, idle_s=timing.idle_s)
        with closing(transport):
            try:
                while not self._complete:
                    yield from self._advance(transport)
            except ReadStoppedError:
                return

    def _advance(self, transport: Transport) -> Iterator[Item]:
        place = self._place()
        if place is Place.AHEAD:
            yield from self._catch_up()
            self._pause(self._timing.poll_s)
        elif place in (Place.GONE, Place.OVERWRITTEN, Place.NEVER):
            yield from self._end_without(place)
        else:
            self._has_begun = True
            try:
                yield from self._read(transport, place)
            except PodLogError as error:
                yield from self._bear(error, place)
                if (
                    isinstance(error, LogRefusedError)
                    and error.status == _NOT_LOGGED_IN
                    and self._log_in_again is not None
                ):
                    self._credentials = self._log_in_again(self._credentials)
                    transport.use(self._credentials)

    def _place(self) -> Place:
        return place_of(self._instance, self._state())

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise ReadStoppedError("stopped")

    def _pause_while_running(self, seconds: float) -> None:
        deadline = self._clock() + seconds
        while self._place() is Place.RUNNING and self._clock() < deadline:
            self._pause(self._timing.poll_s)

    def _catch_up(self) -> Iterator[Item]:
        if not self._caught_up:
            self._caught_up = True
            yield CAUGHT_UP
        self._complete = self._complete or not self._follow

    def _end_without(self, place: Place) -> Iterator[Item]:
        """There is no log to be had any more. One that never began has none."""
        if place is Place.OVERWRITTEN or self._has_begun or may_have_begun(self._instance, self._state()):
            yield from self._lose(None, _LOST[place])
        yield from self._finish()

    def _lose(self, last_ns: int | None, why: str) -> Iterator[Item]:
        """The log has gone. Once it was read to its end, nothing is lost with it."""
        if not self._unverified:
            yield LogGap(self._window.newest_ns, last_ns, why)

    def _finish(self) -> Iterator[Item]:
        self._complete = True
        yield from self._catch_up()

    def _bear(self, error: PodLogError, place: Place) -> Iterator[Item]:
        """Wait, and if that has been long enough, tell what is lost, or what is wrong."""
        try:
            pause_s = self._retry.delay_s(error)
        except LogRefusedError as refused:
            if place is Place.RUNNING or refused.status in (_NOT_LOGGED_IN, 403):
                raise
            yield from self._lose(self._ended_ns(), f"the server no longer has the log: {refused}")
            yield from self._finish()
        else:
            self._pause(pause_s)

    def _ended_ns(self) -> int | None:
        """The last moment at which the instance can have written; the status has whole seconds."""
        end = end_of(self._instance, self._state())
        return None if end is None or end.finished_at is None else int(end.finished_at + 1) * 1_000_000_000

    def _read(self, transport: Transport, place: Place) -> Iterator[Item]:
        """One request, and what its end means."""
        ended = place is not Place.RUNNING
        if ended and self._window.newest_ns is not None and self._has_last_line(transport, place):
            yield from self._finish()
            return
        follow = not ended and self._caught_up
        query = {"container": self._instance.container, "timestamps": "true", **self._since()}
        query |= {"follow": "true"} if follow else {}
        query |= _previous(place)
        with transport.get(self._instance.path, query) as answer:
            self._window.reopen()
            news = yield from self._deliver(answer, place, tick_s=self._timing.tick_s if follow else math.inf)
        self._retry.reset()
        if news is None or (not news and not self._window.joined and self._is_anothers()):
            return
        self._empty = 0 if news else self._empty + 1
        if ended:
            self._unverified = self._unverified or news
            if not news:
                yield from self._conclude()
                yield from self._finish()
        elif follow:
            # It may have ended, and the status not say so yet; or a kubelet has restarted.
            self._pause_while_running(min(self._timing.poll_s * 2.0**self._empty, _LONGEST_PAUSE_S))
        else:
            if not self._follow:
                yield from self._conclude()
            yield from self._catch_up()

    def _has_last_line(self, transport: Transport, place: Place) -> bool:
        """Whether the ended instance's log ends with the line that was delivered last."""
        query = {"container": self._instance.container, "timestamps": "true", "tailLines": "1"}
        query |= _previous(place)
        with transport.get(self._instance.path, query) as answer:
            return b"".join(answer.blocks()) == self._window.last_line

    def _deliver(self, answer: Answer, place: Place, *, tick_s: float) -> Generator[Item, None, bool | None]:
        """Whether anything new came; None if another question is due."""
        # Until a known line has come again, nothing in an answer says which instance it is of.
        sure = self._window.newest_ns is not None
        news = False
        for data in answer.blocks(tick_s):
            if not data:
                # A kubelet notices only after a second that the container has ended, and the pod may be gone by then.
                if self._place() in (Place.ENDED, Place.PREVIOUS):
                    return None
                continue
            self._retry.reset()
            if not sure and self._has_moved(place):
                return None
            sure = True
            lines = self._window.feed(data)
            if self._window.gap:
                if self._has_moved(place) or self._is_anothers():
                    return None
                first_ns, last_ns, lines = self._window.accept()
                yield LogGap(first_ns, last_ns, _UNSERVED)
            if lines:
                news = True
                yield batch_of(lines)
        return news

    def _has_moved(self, place: Place) -> bool:
        """Whether the log that was asked for may be another instance's, as the container has restarted meanwhile."""
        if self._state().may_restart:
            self._pause(self._timing.settle_s)
        now = self._place()
        return now is not place and {now, place} != {Place.RUNNING, Place.ENDED}

    def _is_anothers(self) -> bool:
        """Whether an answer that does not go on where the last one ended is that of a pod which has this one's name."""
        if self._is_there():
            return False
        # The status is behind, and will tell in a moment.
        self._pause(self._timing.settle_s)
        return True

    def _conclude(self) -> Iterator[Item]:
        """An answer came to its end without anything new: the rest of a line, or that something is missing."""
        rest = self._window.finish()
        words = self._window.words.decode("utf-8", "replace").strip()
        if words and (self._window.newest_ns is None or not self._window.joined):
            yield from self._lose(self._ended_ns(), f"the server says: {words}")
        elif not self._window.joined:
            first_ns, last_ns, rest = self._window.accept()
            yield LogGap(first_ns, last_ns if rest else self._ended_ns(), _UNSERVED)
        if rest:
            yield batch_of(rest)

    def _since(self) -> dict[str, str]:
        """From where on to ask: two seconds before what came last, by the node's own clock, in whole seconds.

        `sinceTime` is inclusive, and cut to whole seconds by the API server (LogLocation in pkg/registry/core/pod).
        """
        if self._window.resume_ns is not None:
            moment = datetime.fromtimestamp((self._window.resume_ns - SPAN_NS) // 1_000_000_000, timezone.utc)
            return {"sinceTime": moment.strftime("%Y-%m-%dT%H:%M:%SZ")}
        if self._since_s is not None:
            return {"sinceSeconds": str(max(1, math.ceil(self._since_s + self._clock() - self._began)))}
        return {}


def _previous(place: Place) -> dict[str, str]:
    return {"previous": "true"} if place is Place.PREVIOUS else {}
