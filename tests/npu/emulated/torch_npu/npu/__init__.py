"""torch_npu.npu, which is also torch.npu."""

from . import amp, utils
from .device import (
    _is_in_bad_fork,
    _lazy_init,
    current_device,
    device,
    device_count,
    get_amp_supported_dtype,
    get_device_name,
    init,
    is_available,
    is_bf16_supported,
    is_initialized,
    set_device,
    synchronize,
)
from .graphs import NPUGraph, graph, graph_pool_handle, is_current_stream_capturing
from .memory import (
    empty_cache,
    max_memory_allocated,
    mem_get_info,
    memory_allocated,
    memory_snapshot,
    reset_peak_memory_stats,
)
from .options import set_compile_mode, set_option
from .random import get_rng_state, initial_seed, manual_seed, manual_seed_all, seed, set_rng_state
from .streams import Event, Stream, StreamContext, current_stream, default_stream, set_stream, stream

__all__ = [
    "Event",
    "NPUGraph",
    "Stream",
    "StreamContext",
    "_is_in_bad_fork",
    "_lazy_init",
    "amp",
    "current_device",
    "current_stream",
    "default_stream",
    "device",
    "device_count",
    "empty_cache",
    "get_amp_supported_dtype",
    "get_device_name",
    "get_rng_state",
    "graph",
    "graph_pool_handle",
    "init",
    "initial_seed",
    "is_available",
    "is_bf16_supported",
    "is_current_stream_capturing",
    "is_initialized",
    "manual_seed",
    "manual_seed_all",
    "max_memory_allocated",
    "mem_get_info",
    "memory_allocated",
    "memory_snapshot",
    "reset_peak_memory_stats",
    "seed",
    "set_compile_mode",
    "set_device",
    "set_option",
    "set_rng_state",
    "set_stream",
    "stream",
    "synchronize",
    "utils",
]
