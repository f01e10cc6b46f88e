"""The log of one container instance, from its first line to its last, through every cut of the connection.

Two sources are combined. The stream has the lines, and its end means nothing. The pod's status, which the caller keeps
up to date, says where the instance is in its life. So whenever a stream ends, the status decides what comes next:
follow on; read the rest of an ended instance until nothing is left; after a restart, read it as the container's
previous log; or give up and announce what is lost. A loss that a kubelet's rotation causes inside a stream that is
never cut cannot be seen here; only numbered lines can prove that there is no such loss.
"""

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import KW_ONLY, dataclass, field
from datetime import datetime, timezone

from launcher.jobs import LogLoss
from launcher.kube.access import Credentials
from launcher.kube.retry import Backoff
from launcher.podlogs.errors import (
    LogRefusedError,
    LogRetry,
    PodLogError,
    ReadStoppedError,
    SilentError,
    Timing,
    UntrustedError,
)
from launcher.podlogs.lines import LogPiece
from launcher.podlogs.state import (
    ContainerState,
    Instance,
    LogLocation,
    end_of,
    locate_log,
    may_have_started,
)
from launcher.podlogs.transport import LogResponse, StopSignal, Transport
from launcher.podlogs.window import SPAN_NS, LogWindow

_LONGEST_PAUSE_S = 2.0
# An API server that loses its kubelet ends its answer as if it were whole. The next answer then is a refusal, so two
# answers in a row prove an end that no line proves.
_SURE = 2
_NOT_LOGGED_IN = 401
_ROTATED = "the server no longer has what came before: the log was rotated while the connection was cut"
_LOST = {
    LogLocation.DELETED: "the pod was deleted before its log had been read to the end",
    LogLocation.NEVER_STARTED: "its node has failed the pod, and forgotten its container",
    LogLocation.OVERWRITTEN: "the container restarted twice before its log had been read to the end",
}


@dataclass(eq=False)
class ContainerLog:
    """Iterated over once: the instance's lines, and a loss wherever lines are or may be missing.

    Args:
        state: returns the container's state; called often, so it must not ask the server.
        follow: read until the instance has ended or the pod is gone; otherwise read only the lines of now.
        since_s: read about the lines of these last seconds only.
        log_in_again: returns other credentials than the refused ones.
        is_there: asks the server whether the pod of that name is still this one. Volcano creates pods again under the
            same name, and a log is requested by name.
    """

    credentials: Credentials
    instance: Instance
    state: Callable[[], ContainerState]
    stop: StopSignal
    _: KW_ONLY
    follow: bool = True
    since_s: float | None = None
    timing: Timing = field(default_factory=Timing)
    log_in_again: Callable[[Credentials], Credentials] | None = None
    is_there: Callable[[], bool] = lambda: True
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._retry = LogRetry(Backoff(self.clock))
        self._window = LogWindow()
        self._began = self.clock()
        self._answers = 0
        self._empty_answers = 0
        self._end_answers = 0
        self._silences = 0
        self._caught_up = False
        # The log of an ended instance came to its end. The next request asks whether that was its last line.
        self._unverified = False
        self._complete = False
        self._has_started = False

    def __iter__(self) -> Iterator[LogPiece]:
        """Yield the whole log.

        Raises:
            PodLogError: the server refuses, or is out of reach for too long.
        """
        with closing(Transport(self.credentials, self.stop, self.timing, self.clock)) as transport:
            try:
                while not self._complete:
                    yield from self._advance(transport)
            except ReadStoppedError:
                return

    def _advance(self, transport: Transport) -> Iterator[LogPiece]:
        location = self._locate()
        if location is LogLocation.NOT_STARTED:
            yield from self._catch_up()
            self._pause(self.timing.poll_s)
        elif location in _LOST:
            yield from self._end_without_log(location)
        else:
            self._has_started = True
            try:
                yield from self._read(transport, location)
            except PodLogError as error:
                yield from self._wait_or_end(error, location)
                refused = isinstance(error, LogRefusedError) and error.status == _NOT_LOGGED_IN
                if (refused or isinstance(error, UntrustedError)) and self.log_in_again is not None:
                    self.credentials = self.log_in_again(self.credentials)
                    transport.use(self.credentials)

    def _locate(self) -> LogLocation:
        return locate_log(self.instance, self.state())

    def _pause(self, seconds: float) -> None:
        if self.stop.wait(seconds):
            raise ReadStoppedError("stopped")

    def _pause_while_running(self, seconds: float) -> None:
        deadline = self.clock() + seconds
        while self._locate() is LogLocation.RUNNING and self.clock() < deadline:
            self._pause(self.timing.poll_s)

    def _catch_up(self) -> Iterator[LogPiece]:
        """Say, once, that all lines of now have come."""
        if not self._caught_up:
            self._caught_up = True
            yield b""
        self._complete = self._complete or not self.follow

    def _end_without_log(self, location: LogLocation) -> Iterator[LogPiece]:
        """End, as the log cannot be read any more. An instance that never started loses nothing."""
        if location is LogLocation.OVERWRITTEN or self._has_started or may_have_started(self.instance, self.state()):
            yield from self._loss(None, _LOST[location])
        yield from self._finish()

    def _loss(self, last_ns: int | None, reason: str) -> Iterator[LogLoss]:
        """Announce that the log is gone. If it was read to its end before, nothing is lost with it."""
        if not self._unverified:
            yield LogLoss(reason, self._window.newest_ns, last_ns, at_end=True)

    def _finish(self) -> Iterator[LogPiece]:
        self._complete = True
        yield from self._catch_up()

    def _wait_or_end(self, error: PodLogError, location: LogLocation) -> Iterator[LogPiece]:
        """Wait before the next try. If another try does not help, announce the loss, or raise the error."""
        try:
            self._silences += isinstance(error, SilentError)
            delay_s = self._retry.delay_s(error, runs=location is LogLocation.RUNNING)
        except LogRefusedError as refusal:
            if location is LogLocation.RUNNING or refusal.status in (_NOT_LOGGED_IN, 403):
                raise
            yield from self._loss(self._ended_ns(), f"the server no longer has the log: {refusal}")
            yield from self._finish()
        else:
            self._pause(delay_s)

    def _ended_ns(self) -> int | None:
        """Return the last moment at which the instance can have written; the status has whole seconds."""
        end = end_of(self.instance, self.state())
        return None if end is None or end.finished_at is None else int(end.finished_at + 1) * 1_000_000_000

    def _read(self, transport: Transport, location: LogLocation) -> Iterator[LogPiece]:
        """Send one request, yield its lines, and decide what its end means."""
        ended = location is not LogLocation.RUNNING
        if ended and self._window.newest_ns is not None and self._has_last_line(transport, location):
            yield from self._finish()
            return
        follow = not ended and self._caught_up
        query = self._since() | ({"follow": "true"} if follow else {})
        with self._get(transport, location, query) as response:
            self._window.reopen()
            has_new = yield from self._deliver(response, location, tick_s=self.timing.tick_s if follow else math.inf)
        self._retry.reset()
        if has_new is None or (not has_new and not self._window.joined and self._is_of_another_pod()):
            return
        self._answers += 1
        self._empty_answers = 0 if has_new else self._empty_answers + 1
        if ended:
            self._unverified = self._unverified or has_new
            self._end_answers = 0 if has_new else self._end_answers + 1
            if self._end_answers >= _SURE:
                yield from self._conclude()
                yield from self._finish()
            elif not has_new:
                self._pause(self.timing.settle_s)
        elif follow:
            # Either the instance has ended and the status does not say so yet, or a kubelet has restarted.
            self._pause_while_running(min(self.timing.poll_s * 2.0**self._empty_answers, _LONGEST_PAUSE_S))
        elif self.follow:
            yield from self._catch_up()
        elif self._answers >= _SURE:
            yield from self._conclude()
            yield from self._catch_up()

    def _get(
        self, transport: Transport, location: LogLocation, query: Mapping[str, str]
    ) -> AbstractContextManager[LogResponse]:
        query = {"container": self.instance.container, "timestamps": "true", **query}
        query |= {"previous": "true"} if location is LogLocation.PREVIOUS else {}
        reply_s = min(self.timing.reply_s * 2.0**self._silences, self.timing.idle_s)
        return transport.get(self.instance.path, query, idle_s=self.timing.idle_s if "follow" in query else reply_s)

    def _has_last_line(self, transport: Transport, location: LogLocation) -> bool:
        """Ask whether the ended instance's log ends with the line that was delivered last."""
        with self._get(transport, location, {"tailLines": "1"}) as response:
            return b"".join(response.blocks()) == self._window.last_line

    def _deliver(
        self, response: LogResponse, location: LogLocation, *, tick_s: float
    ) -> Generator[LogPiece, None, bool | None]:
        """Yield the new lines; return whether there were any, or None if another request must be sent."""
        # Until a known line has come again, an answer does not show which instance it belongs to.
        sure = self._window.newest_ns is not None
        has_new = False
        for data in response.blocks(tick_s):
            if not data:
                # A kubelet needs a second to notice that the container has ended; the pod may be gone by then.
                if self._locate() in (LogLocation.ENDED, LogLocation.PREVIOUS):
                    return None
                continue
            self._retry.reset()
            self._silences = 0
            if not sure and self._has_moved(location):
                return None
            sure = True
            lines = self._window.feed(data)
            if self._window.has_gap:
                if self._has_moved(location) or self._is_of_another_pod():
                    return None
                first_ns, last_ns, lines = self._window.accept_gap()
                yield LogLoss(_ROTATED, first_ns, last_ns)
            if lines:
                has_new = True
                yield lines
        return has_new

    def _has_moved(self, location: LogLocation) -> bool:
        """Return whether the answer may be of another instance, because the container has restarted meanwhile."""
        if self.state().may_restart:
            self._pause(self.timing.settle_s)
        current = self._locate()
        return current is not location and {current, location} != {LogLocation.RUNNING, LogLocation.ENDED}

    def _is_of_another_pod(self) -> bool:
        """Return whether an answer that does not continue the last one comes from another pod of the same name."""
        if self.is_there():
            return False
        # The status is behind, and will show it soon.
        self._pause(self.timing.settle_s)
        return True

    def _conclude(self) -> Iterator[LogPiece]:
        """Yield what an answer without new lines still tells: the rest of a line, or that lines are missing."""
        rest = self._window.finish()
        message = self._window.server_message.decode("utf-8", "replace").strip()
        if message and (self._window.newest_ns is None or not self._window.joined):
            yield from self._loss(self._ended_ns(), f"the server says: {message}")
        elif not self._window.joined:
            first_ns, last_ns, rest = self._window.accept_gap()
            yield LogLoss(_ROTATED, first_ns, last_ns if rest else self._ended_ns(), at_end=not rest)
        if rest:
            yield rest

    def _since(self) -> dict[str, str]:
        """Return from where on to ask: two seconds before the last line, by the node's own clock.

        `sinceTime` is inclusive, and the API server cuts it to whole seconds (LogLocation in pkg/registry/core/pod).
        """
        if self._window.resume_ns is not None:
            moment = datetime.fromtimestamp((self._window.resume_ns - SPAN_NS) // 1_000_000_000, timezone.utc)
            return {"sinceTime": moment.strftime("%Y-%m-%dT%H:%M:%SZ")}
        if self.since_s is not None:
            return {"sinceSeconds": str(max(1, math.ceil(self.since_s + self.clock() - self._began)))}
        return {}
