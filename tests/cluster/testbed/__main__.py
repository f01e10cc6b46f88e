"""`python -m tests.cluster.testbed`: a cluster to try things out on, for as long as this program runs."""

import sys
import time
from contextlib import suppress

from tests.cluster.testbed.binaries import BuildError
from tests.cluster.testbed.cluster import running
from tests.cluster.testbed.processes import StartError


def main() -> int:
    """Start one, say how to reach it, and hold it until Ctrl-C."""
    began = time.monotonic()
    try:
        with running() as cluster, suppress(KeyboardInterrupt):
            sys.stdout.write(f"export KUBECONFIG={cluster.kubeconfig}\n")
            sys.stdout.write(f"# ready after {time.monotonic() - began:.1f} s; Ctrl-C ends it. Try:\n")
            sys.stdout.write(f"{cluster.programs / 'kubectl'} get nodes\n")
            sys.stdout.flush()
            time.sleep(10**9)
    except (StartError, BuildError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
