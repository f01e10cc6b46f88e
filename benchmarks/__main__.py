"""Every measurement, one after the other: `make bench`."""

import sys

from benchmarks import checkpoint_save, data_pipeline, launcher_start, model_step


def main() -> int:
    """Run them; the exit code says whether every bar was met."""
    return max([launcher_start.main(), data_pipeline.main(), model_step.main(), checkpoint_save.main()])


if __name__ == "__main__":
    sys.exit(main())
