"""The follower of pods' logs as a program: `python -m benchmarks.log_reader KUBECONFIG NAMESPACE POD plain`.

It writes a pod's lines to standard output. With `stamped` instead of `plain` it follows the log until it is killed, and
each line has its timestamp. It is a separate program because `benchmarks.follow` measures its memory, imports included.
"""

import sys
from pathlib import Path

from launcher.jobs import LogLoss
from launcher.kube.access import ClusterAccess
from launcher.kube.api import connect
from launcher.kube.resources import PODS
from launcher.podlogs.container import ContainerLog
from launcher.podlogs.lines import without_timestamps
from launcher.podlogs.state import ContainerState, Instance, container_state
from launcher.podlogs.transport import StopSignal


def main(kubeconfig: str, namespace: str, name: str, form: str) -> None:
    """Write the log; read the pod's state once, at the start."""
    api = connect(ClusterAccess(Path(kubeconfig), None, namespace))
    pod = api.get(PODS, name)

    def state() -> ContainerState:
        return container_state(pod, "trainer")

    instance = Instance(namespace, name, pod["metadata"]["uid"], "trainer")
    stamped = form == "stamped"
    for piece in ContainerLog(api.credentials, instance, state, StopSignal(), follow=stamped):
        assert not isinstance(piece, LogLoss), piece
        sys.stdout.buffer.write(piece if stamped else without_timestamps(piece))
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
