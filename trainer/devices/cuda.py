"""An NVIDIA GPU as a device, over NCCL."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.devices.profiles import TorchProfile
from trainer.shared.errors import UsageError


class CudaDevice:
    """One process and its GPU."""

    kind = "cuda"
    backend = "nccl"
    pin_memory = True
    default_precision = "bf16"
    memory_format = "nhwc"

    def __init__(self) -> None:
        self._graph_pool: Any = None

    def open(self, local_rank: int) -> torch.device:
        """Bind the process to the GPU with its local rank.

        Convolutions in fp32 multiply whole operands: by torch's default they round them to 11 bits (TF32), and a user
        who wants speed rather than fp32 has bf16.

        Raises:
            UsageError: torch sees no such GPU.
        """
        if not torch.cuda.is_available() or local_rank >= torch.cuda.device_count():
            raise UsageError(
                f"--device cuda: no GPU with index {local_rank} (torch {torch.__version__} sees "
                f"{torch.cuda.device_count()}): check nvidia-smi, or use --device cpu"
            )
        torch.cuda.set_device(local_rank)
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        return torch.device("cuda", local_rank)

    def autocast(self, dtype: torch.dtype) -> AbstractContextManager[Any]:
        """Return torch's mixed precision on CUDA."""
        return torch.autocast("cuda", dtype=dtype)

    def has_bf16(self) -> bool:
        """Return whether the GPU computes in bfloat16: Ampere and newer ones do."""
        return bool(torch.cuda.is_bf16_supported())

    def rounds_fp32(self) -> bool:
        """Return whether convolutions or matrix products in fp32 may round their operands to TF32."""
        return torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32

    def grad_scaler(self, *, init_scale: float) -> torch.amp.GradScaler:
        """Return torch's scaler."""
        return torch.amp.GradScaler("cuda", init_scale=init_scale)

    def seed(self, key: int) -> None:
        """Seed this GPU's default generator."""
        torch.cuda.manual_seed(key)

    def rng_state(self) -> Tensor:
        """Return the default generator's state, uint8 (n,) on the CPU."""
        state: Tensor = torch.cuda.get_rng_state()
        return state

    def set_rng_state(self, state: Tensor) -> None:
        """Restore such a state."""
        torch.cuda.set_rng_state(state)

    def name(self) -> str:
        """Return the GPU's model."""
        return torch.cuda.get_device_name()

    def peak_memory_mib(self) -> float:
        """Return the peak memory of tensors, in MiB."""
        return torch.cuda.max_memory_allocated() / 2**20

    def memory_bytes(self) -> tuple[int, int]:
        """Return the free and the whole memory of the GPU."""
        return torch.cuda.mem_get_info()

    def new_event(self) -> Any:
        """Return a mark that gets the device's time."""
        return torch.cuda.Event(enable_timing=True)

    def profile(self, folder: Path, steps: int) -> TorchProfile:
        """Return a profile of the process and the GPU, which begins when it is started; `folder` gets its trace."""
        return TorchProfile(folder, steps, on_gpu=True)

    def graph_obstacle(self) -> str | None:
        """Return None: a GPU captures graphs."""
        return None

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record `work` as a CUDA graph; all graphs of the process share their memory."""
        graph = torch.cuda.CUDAGraph()
        if self._graph_pool is None:
            self._graph_pool = torch.cuda.graph_pool_handle()
        # The outer context restores the stream if a capture fails. In other threads, a checkpoint may be copied.
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, pool=self._graph_pool, capture_error_mode="thread_local"),
        ):
            work()
        return graph.replay
