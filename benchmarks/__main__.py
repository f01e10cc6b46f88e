"""All measurements, one after the other: `make bench`."""

import sys

from benchmarks import (
    checkpoint_save,
    data_pipeline,
    follow,
    large_cluster,
    launcher_start,
    model_step,
    npu_host_work,
    packed_data,
    snapshot,
    startup,
    submit,
)
from tests.cluster.testbed.requirements import missing_requirement


def main() -> int:
    """Run all measurements; return 1 if a bar is missed."""
    if len(sys.argv) > 1:
        print(
            "usage: python -m benchmarks (without arguments: it runs all, and writes benchmarks/results)",
            file=sys.stderr,
        )
        return 2
    codes = [
        launcher_start.main(),
        data_pipeline.main(),
        packed_data.main(),
        startup.main(),
        model_step.main(),
        npu_host_work.main(),
        checkpoint_save.main(),
        snapshot.main(),
    ]
    reason = missing_requirement()
    if reason is None:
        codes += [submit.main(), follow.main(), large_cluster.main()]
    else:
        print(f"not measured, because {reason}: submit, follow and large_cluster", file=sys.stderr)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
