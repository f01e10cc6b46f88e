"""One process of the stand-in: `python -m tests.cluster.testbed.volcano controller --kubeconfig FILE`."""

import argparse
from pathlib import Path

from tests.cluster.testbed.volcano.controller import controller
from tests.cluster.testbed.volcano.scheduler import scheduler
from tests.cluster.testbed.volcano.webhook import server


def main() -> None:
    """Run one component for ever."""
    parser = argparse.ArgumentParser()
    parser.add_argument("component", choices=("controller", "scheduler", "webhook"))
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--certificate", type=Path)
    parser.add_argument("--key", type=Path)
    parser.add_argument("--port", type=int)
    options = parser.parse_args()
    if options.component == "controller":
        controller.run(options.kubeconfig)
    elif options.component == "scheduler":
        scheduler.run(options.kubeconfig)
    else:
        server.run(options.kubeconfig, options.certificate, options.key, options.port)


if __name__ == "__main__":
    main()
