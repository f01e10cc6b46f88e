"""The follower of pods' logs alone, as a program: `python -m benchmarks.log_reader KUBECONFIG NAMESPACE POD plain`.

It writes a pod's lines to standard output; with `stamped` in place of `plain` it goes on until it is ended, and gives
each line its stamp. It is apart from `benchmarks.follow` because its memory is measured, and imports count.
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
    """Write the log; the pod's state is the one that it has now."""
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
