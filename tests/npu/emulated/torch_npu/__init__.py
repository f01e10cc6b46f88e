"""An EMULATION of torch_npu for tests: the device is this machine's CPU, and says so in its name.

It has the names of torch_npu 2.9.0 and 2.14.0 that the trainer uses, with their arguments and defaults, and few others.
With the folder of this package on PYTHONPATH, `import torch` loads it by torch's autoload, like the real one.
"""

from . import _emulation
from ._operators import (
    get_npu_format,
    npu_clear_float_status,
    npu_format_cast,
    npu_get_float_status,
    npu_one_hot,
    npu_softmax_cross_entropy_with_logits,
)
from .version import __version__

_emulation.name_backend()

from . import npu, optim, profiler, utils  # noqa: E402  # they need the backend's name

_emulation.register(npu)

__all__ = [
    "__version__",
    "get_npu_format",
    "npu",
    "npu_clear_float_status",
    "npu_format_cast",
    "npu_get_float_status",
    "npu_one_hot",
    "npu_softmax_cross_entropy_with_logits",
    "optim",
    "profiler",
    "utils",
]


def _autoload() -> None:
    """The entry point of torch's autoload; the import has done everything."""
