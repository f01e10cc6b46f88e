"""`python -m trainer`: see `trainer.cli`."""

import os

from trainer.shared.program import run_program

if __name__ == "__main__":
    # `import torch` would load torch_npu in every process, even in loaders, and fail with torch's own message if that
    # cannot be loaded, even on the CPU. The NPU device loads torch_npu when it is opened.
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    run_program("trainer.cli")
