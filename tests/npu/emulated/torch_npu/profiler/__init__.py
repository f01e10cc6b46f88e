"""torch_npu.profiler: a profile is torch's own of the CPU, in the files of torch_npu's.

Like torch_npu's, `profile` and `analyse` raise no errors: they print them.
"""

from torch.profiler import ProfilerAction

from .profiler import ProfilerActivity, profile, tensorboard_trace_handler
from .scheduler import Schedule as schedule  # noqa: N813  # the name of the real one

__all__ = ["ProfilerAction", "ProfilerActivity", "profile", "schedule", "tensorboard_trace_handler"]
