"""Graphs: operators that are recorded once, and then run again by one call.

While a graph is recorded, the emulation refuses what a real device refuses: waiting for a result, copies between host
and device, and seeds.
"""

import gc
from types import TracebackType
from typing import Any

from .._emulation import core, note_call
from .device import synchronize
from .memory import empty_cache
from .streams import Stream, stream

_pools = iter(range(1, 1 << 62))


def graph_pool_handle() -> tuple[int, int]:
    """Return a new name for a pool of memory, which graphs may share; the emulation has no pools."""
    return (0, next(_pools))


def is_current_stream_capturing() -> bool:
    return bool(core.is_capturing())


class NPUGraph:
    """One recorded sequence of operators, with their memory."""

    def __init__(self) -> None:
        self._graph = core.Graph()
        self._pool: Any = None

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
        if capture_error_mode not in ("global", "thread_local", "relaxed"):
            raise RuntimeError(f"Unknown capture error mode. Expected `global`, got {capture_error_mode}")
        self._pool = pool or graph_pool_handle()
        note_call("capture_begin", capture_error_mode=capture_error_mode)
        self._graph.begin()

    def capture_end(self) -> None:
        self._graph.end()

    def replay(self) -> None:
        self._graph.replay()

    def reset(self) -> None:
        self._graph = core.Graph()

    def pool(self) -> Any:
        return self._pool


class graph:  # noqa: N801  # its name
    """Record the work of a context."""

    def __init__(
        self,
        npu_graph: NPUGraph,
        pool: Any = None,
        stream: Stream | None = None,
        auto_dispatch_capture: bool = False,
        capture_error_mode: str = "global",
    ) -> None:
        if auto_dispatch_capture:
            raise NotImplementedError("auto_dispatch_capture is not emulated")
        self._graph, self._pool, self._mode = npu_graph, pool, capture_error_mode
        self._context = _on_stream(stream)

    def __enter__(self) -> None:
        synchronize()
        gc.collect()
        empty_cache()
        self._context.__enter__()
        self._graph.capture_begin(pool=self._pool, capture_error_mode=self._mode)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._graph.capture_end()
        self._context.__exit__(kind, error, traceback)


def _on_stream(wanted: Stream | None) -> Any:
    return stream(Stream() if wanted is None else wanted)
