"""One process of the stand-in: `python -m tests.cluster.testbed.volcano controller --kubeconfig FILE`."""

import argparse
from pathlib import Path

from tests.cluster.testbed.volcano.controller import controller
from tests.cluster.testbed.volcano.scheduler import scheduler
from tests.cluster.testbed.volcano.webhook import server


def main() -> None:
    """Run one, for ever."""
    parser = argparse.ArgumentParser()
    parser.add_argument("component", choices=("controller", "scheduler", "webhook"))
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--certificate", type=Path)
    parser.add_argument("--key", type=Path)
    parser.add_argument("--port", type=int)
    asked = parser.parse_args()
    if asked.component == "controller":
        controller.run(asked.kubeconfig)
    elif asked.component == "scheduler":
        scheduler.run(asked.kubeconfig)
    else:
        server.run(asked.kubeconfig, asked.certificate, asked.key, asked.port)


if __name__ == "__main__":
    main()
