"""An Ascend NPU as a device, over HCCL.

Written from torch_npu's sources, and run on an emulated NPU (tests/npu); it has never run on a real one.

torch_npu is imported when the device is opened, and not earlier: other machines do not have it.
"""

import contextlib
import importlib
import os
import pickle
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.devices.npu_profile import NpuProfile
from trainer.devices.runtime_env import ENABLE, INTERNAL_FORMAT, JIT_COMPILE
from trainer.devices.runtime_errors import explain_loading_error
from trainer.shared.errors import RuntimeUnusableError
from trainer.shared.files import writing
from trainer.shared.program import TRAINER

_LOG_FLUSH_S = 0.4
"""CANN's log waits in memory for a thread that writes it every 0.2 s (cann/runtime, plog_host_log.c)."""


def keep_evidence(error: BaseException | None = None) -> None:
    """Let CANN write the last lines of its log before a failed process ends without cleaning up.

    Out of memory, also write what is in the device's memory, as torch's memory_viz reads it, to OOM_SNAPSHOT_PATH. This
    costs nothing before; torch_npu's own OOM_SNAPSHOT_ENABLE takes the stack of each allocation.
    """
    if "torch_npu" not in sys.modules:
        return
    torch_npu: Any = importlib.import_module("torch_npu")
    folder = os.environ.get("OOM_SNAPSHOT_PATH")
    if folder and "out of memory. Tried to allocate" in str(error):
        with contextlib.suppress(OSError, RuntimeError):
            Path(folder).mkdir(parents=True, exist_ok=True)
            with (Path(folder) / f"memory_{os.getpid()}.pickle").open("wb") as file:
                pickle.dump(torch_npu.npu.memory_snapshot(), file)
    time.sleep(_LOG_FLUSH_S)


class NpuDevice:
    """One process and its NPU.

    Raises:
        RuntimeUnusableError: torch_npu or a library of CANN cannot be loaded.
    """

    kind = "npu"
    backend = "hccl"
    pin_memory = True
    default_precision = "O2"
    memory_format = "nchw"

    def __init__(self) -> None:
        try:
            # Typed as Any: torch_npu has no stubs and is absent where the types are checked.
            self._torch_npu: Any = importlib.import_module("torch_npu")
        except (ImportError, OSError, RuntimeError) as error:
            reason = explain_loading_error(str(error)) or (
                f"torch_npu cannot be loaded ({type(error).__name__}): {TRAINER} env says what is missing"
            )
            raise RuntimeUnusableError(f"--device npu: {reason}") from error
        self._graph_pool: Any = None

    def open(self, local_rank: int) -> torch.device:
        """Bind the process to the NPU with its local rank.

        `set_device` comes first, because torch_npu opens device 0 on any earlier call. Binary kernels
        (`jit_compile=False`) save minutes of operator compilation on the first step (facts: 600 s to 40 s on a 910A).
        Operators that are still compiled are cached in ACL_OP_COMPILER_CACHE_DIR.

        torch_npu takes the options INTERNAL_FORMAT and JIT_COMPILE by calls only; here variables set them.

        Convolutions in fp32 multiply whole operands: by torch_npu's default they round them to 12 bits (HF32), and a
        user who wants speed rather than fp32 has bf16, fp16 and O2.

        Raises:
            RuntimeUnusableError: torch_npu sees no such NPU.
            UsageError: the folder cannot be written.
        """
        npu = self._torch_npu.npu
        try:
            npu.set_device(local_rank)
        except RuntimeError as error:
            if local_rank < npu.device_count():
                raise
            raise RuntimeUnusableError(
                f"--device npu: no NPU with index {local_rank} (torch_npu sees {npu.device_count()}): check npu-smi "
                "info and ASCEND_RT_VISIBLE_DEVICES"
            ) from error
        npu.set_compile_mode(jit_compile=os.environ.get(JIT_COMPILE) == ENABLE)
        npu.conv.allow_hf32 = npu.matmul.allow_hf32 = False
        if formats := os.environ.get(INTERNAL_FORMAT):
            npu.set_option({INTERNAL_FORMAT: formats})
        folder = os.environ.get("ACL_OP_COMPILER_CACHE_DIR")
        if folder:
            with writing(Path(folder)):
                Path(folder).mkdir(parents=True, exist_ok=True)
            npu.set_option({"ACL_OP_COMPILER_CACHE_MODE": "enable", "ACL_OP_COMPILER_CACHE_DIR": folder})
        return torch.device("npu", local_rank)

    def autocast(self, dtype: torch.dtype) -> AbstractContextManager[Any]:
        """Return torch_npu's autocast."""
        context: AbstractContextManager[Any] = self._torch_npu.npu.amp.autocast(dtype=dtype)
        return context

    def has_bf16(self) -> bool:
        """Return whether the NPU computes in bfloat16; an Ascend 910A does not."""
        return bool(self._torch_npu.npu.is_bf16_supported())

    def rounds_fp32(self) -> bool:
        """Return whether convolutions or matrix products in fp32 may round their operands to HF32."""
        return bool(self._torch_npu.npu.conv.allow_hf32 or self._torch_npu.npu.matmul.allow_hf32)

    def grad_scaler(self, *, init_scale: float) -> torch.amp.GradScaler:
        """Return torch_npu's scaler: unlike torch's, it reads the overflow flag that a 910A has in hardware."""
        scaler: torch.amp.GradScaler = self._torch_npu.npu.amp.GradScaler(init_scale=init_scale)
        return scaler

    def seed(self, key: int) -> None:
        """Seed this NPU's default generator."""
        self._torch_npu.npu.manual_seed(key)

    def rng_state(self) -> Tensor:
        """Return the default generator's state, uint8 (n,) on the CPU."""
        state: Tensor = self._torch_npu.npu.get_rng_state()
        return state

    def set_rng_state(self, state: Tensor) -> None:
        """Restore such a state."""
        self._torch_npu.npu.set_rng_state(state)

    def name(self) -> str:
        """Return the NPU's model."""
        return str(self._torch_npu.npu.get_device_name())

    def peak_memory_mib(self) -> float:
        """Return the peak memory of tensors, in MiB."""
        return float(self._torch_npu.npu.max_memory_allocated()) / 2**20

    def memory_bytes(self) -> tuple[int, int]:
        """Return the free and the whole memory of the NPU."""
        free, total = self._torch_npu.npu.mem_get_info()
        return int(free), int(total)

    def new_event(self) -> Any:
        """Return a mark that gets the device's time."""
        return self._torch_npu.npu.Event(enable_timing=True)

    def profile(self, folder: Path, steps: int) -> NpuProfile:
        """Return a profile of the process and the NPU, which begins when it is started; `folder` gets its trace."""
        return NpuProfile(self._torch_npu, folder, steps)

    def graph_obstacle(self) -> str | None:
        """Return why the NPU or its torch_npu cannot capture a step; None if it can."""
        npu = self._torch_npu.npu
        if not hasattr(npu, "NPUGraph"):
            return f"torch_npu {self._torch_npu.__version__} has no graphs"
        if not npu.utils.is_support_inf_nan():
            return f"{self.name()} shows an overflow only in a flag that the host reads"
        # Without a kernel torch_npu computes on the host: a copy of all weights in each step.
        if not torch._C._dispatch_has_kernel_for_dispatch_key("aten::_fused_sgd_.tensor_lr", "PrivateUse1"):
            return f"torch_npu {self._torch_npu.__version__} has no fused SGD whose rate lies on the device"
        return None

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record `work` as a graph of torch_npu's; all graphs of the process share their memory."""
        npu = self._torch_npu.npu
        graph = npu.NPUGraph()
        if self._graph_pool is None:
            self._graph_pool = npu.graph_pool_handle()
        # The outer context restores the stream if a capture fails. In other threads, a checkpoint may be copied.
        with (
            npu.stream(npu.current_stream()),
            npu.graph(graph, pool=self._graph_pool, capture_error_mode="thread_local"),
        ):
            work()
        replay: Callable[[], None] = graph.replay
        return replay
