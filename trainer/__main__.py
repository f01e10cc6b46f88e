"""`python -m trainer`: see `trainer.cli`."""

import os

from trainer.shared.program import exit_with, run

if __name__ == "__main__":
    # `import torch` would load torch_npu in every process, loaders too, and where that cannot be loaded fail in words
    # of torch's, even on the CPU; the device loads it when it is opened.
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    exit_with(lambda: run("trainer.cli"))
