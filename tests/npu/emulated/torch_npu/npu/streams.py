"""Streams and events. Here all work is done when a call returns, so they have no effect."""

from types import TracebackType
from typing import Any

import torch

from .._emulation import core
from .device import Which, index_of


class Stream(torch.Stream):
    """A stream of a device."""

    def __new__(cls, device: Which = None, priority: int = 0, **_kwargs: Any) -> "Stream":
        made: Stream = super().__new__(cls, device=torch.device("npu", index_of(device)), priority=priority)
        return made


class Event:
    """A point in a stream's work. It holds torch's event: torch compares the times only of exactly that class."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
        self._event = torch.Event(device="npu", enable_timing=enable_timing, blocking=blocking)

    def record(self, stream: torch.Stream | None = None) -> None:
        core.refuse_in_capture("an event")  # a real one becomes part of the graph, and has no time any more
        self._event.record(stream)

    def wait(self, stream: torch.Stream | None = None) -> None:
        self._event.wait(stream)

    def query(self) -> bool:
        return self._event.query()

    def elapsed_time(self, end_event: "Event") -> float:
        return self._event.elapsed_time(end_event._event)

    def synchronize(self) -> None:
        self._event.synchronize()


class StreamContext:
    """Makes a stream the current one within a context."""

    def __init__(self, stream_ctx: torch.Stream | None) -> None:
        self._stream = stream_ctx
        self._before: torch.Stream | None = None

    def __enter__(self) -> None:
        if self._stream is not None:
            self._before = current_stream(self._stream.device)
            set_stream(self._stream)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._before is not None:
            set_stream(self._before)


def stream(stream: torch.Stream | None) -> StreamContext:
    return StreamContext(stream)


def set_stream(stream: torch.Stream) -> None:
    torch.accelerator.set_stream(stream)


def current_stream(device: Which = None) -> torch.Stream:
    return torch.accelerator.current_stream(torch.device("npu", index_of(device)))


def default_stream(device: Which = None) -> torch.Stream:
    return torch.Stream(device=torch.device("npu", index_of(device)))
