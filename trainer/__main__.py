"""`python -m trainer`: see `trainer.cli`."""

import os
import sys

from trainer.errors import UsageError
from trainer.program import exit_with, missing_package


def _main() -> int:
    try:
        from trainer.cli import main  # noqa: PLC0415
    except ModuleNotFoundError as error:
        sys.stderr.write(f"error: {missing_package(error)}\n")
        return UsageError.exit_code
    return main()


if __name__ == "__main__":
    # `import torch` would load torch_npu in every process, loaders too, and where that cannot be loaded fail in words
    # of torch's, even on the CPU; the device loads it when it is opened.
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    try:
        exit_with(_main())
    except KeyboardInterrupt:
        exit_with(130)
