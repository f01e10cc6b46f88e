"""Streams and events. Here all work is done when a call returns, so they have no effect."""

from types import TracebackType
from typing import Any

import torch

from .device import Which, index_of


class Stream(torch.Stream):
    """A stream of a device."""

    def __new__(cls, device: Which = None, priority: int = 0, **_kwargs: Any) -> "Stream":
        made: Stream = super().__new__(cls, device=torch.device("npu", index_of(device)), priority=priority)
        return made


def Event(  # noqa: N802  # a class in torch_npu; torch compares the times only of events of exactly its own class
    enable_timing: bool = False, blocking: bool = False, interprocess: bool = False
) -> torch.Event:
    """Return a point in a stream's work."""
    return torch.Event(device="npu", enable_timing=enable_timing, blocking=blocking)


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
