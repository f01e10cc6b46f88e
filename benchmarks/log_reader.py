"""The follower of pods' logs as a program: `python -m benchmarks.log_reader KUBECONFIG NAMESPACE POD plain`.

It writes a pod's lines to standard output. With `stamped` instead of `plain` it follows the log until it is killed, and
each line has its timestamp. It is a separate program because `benchmarks.follow` measures its memory, imports included.
"""

import sys
from pathlib import Path

from launcher.kube.connection import connect
from launcher.kube.place import Place
from launcher.kube.resources import PODS
from launcher.podlogs.batch import LogGap
from launcher.podlogs.container import ContainerLog
from launcher.podlogs.state import ContainerState, Instance, container_state
from launcher.podlogs.stop import Stop


def main(kubeconfig: str, namespace: str, name: str, form: str) -> None:
    """Write the log; read the pod's state once, at the start."""
    api = connect(Place(Path(kubeconfig), None, namespace))
    pod = api.get(PODS, name)

    def state() -> ContainerState:
        return container_state(pod, "trainer")

    instance = Instance(namespace, name, pod["metadata"]["uid"], "trainer")
    stamped = form == "stamped"
    for item in ContainerLog(api.credentials, instance, state, Stop(), follow=stamped):
        assert not isinstance(item, LogGap), item
        sys.stdout.buffer.write(item.stamped if stamped else item.data)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
