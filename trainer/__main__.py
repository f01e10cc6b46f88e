"""`python -m trainer` and `pnas-trainer`: see `trainer.cli`."""

import os

from trainer.shared.start import forget_working_folder, run_pinned


def main() -> None:
    """Run the trainer's command line."""
    # `import torch` would load torch_npu in every process, even in loaders, and fail with torch's own message if that
    # cannot be loaded, even on the CPU. The NPU device loads torch_npu when it is opened.
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    # Before its first model, pydantic looks for plugins in every installed package.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    run_pinned("trainer.cli")


if __name__ == "__main__":
    forget_working_folder()
    main()
