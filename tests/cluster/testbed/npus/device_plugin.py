"""A SIMULATION of Ascend's device plugin: it advertises NPUs that do not exist on the kubelet's real interface.

Run as `python -m tests.cluster.testbed.npus.device_plugin SPEC` with the node's kubelet folders; SPEC is JSON. The
devices in its `health` file (`0,3`) are unhealthy. Containers get `ASCEND_VISIBLE_DEVICES`, which Ascend Docker Runtime
reads; `pod_annotations` writes the devices on their pods.
"""

import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc

from tests.cluster.testbed.npus import pod_annotations

RESOURCE = "huawei.com/Ascend910"
VERSION = "v1beta1"
FOLDER = Path("/var/lib/kubelet/device-plugins")
KUBELET_SOCKET, SOCKET = FOLDER / "kubelet.sock", FOLDER / "ascend910-simulation.sock"
WATCHED_WITHIN_S = 15.0
RING = 4  # Atlas 800 (9000): HCCS connects chips 0-3 and 4-7


def preferred(available: Sequence[int], required: Sequence[int], size: int) -> list[int]:
    """Return `size` of the `available` chips including `required`, all of one HCCS ring if one ring has enough.

    A partly used ring goes first, so that whole rings stay for larger jobs.
    """
    rings = sorted({chip // RING for chip in available}, key=lambda ring: sum(c // RING == ring for c in available))
    for ring in rings:
        chips = [chip for chip in available if chip // RING == ring]
        if len(chips) >= size and set(required) <= set(chips):
            return sorted([*required, *(chip for chip in chips if chip not in required)][:size])
    by_ring = sorted(available, key=lambda chip: (rings.index(chip // RING), chip))
    return sorted([*required, *(chip for chip in by_ring if chip not in required)][:size])


class Plugin:
    """The service that the kubelet calls; `messages` are the types of the kubelet's protocol file."""

    def __init__(self, messages: Any, count: int, health: Path) -> None:
        self._messages = messages
        self._count = count
        self._health = health
        self.watched = threading.Event()
        """Set when the kubelet has begun to watch the devices."""

    def GetDevicePluginOptions(self, _request: Any, _context: Any) -> Any:  # noqa: N802  # the protocol's name
        """Announce that the plugin has preferences."""
        return self._messages.DevicePluginOptions(get_preferred_allocation_available=True)

    def ListAndWatch(self, _request: Any, context: Any) -> Iterator[Any]:  # noqa: N802  # the protocol's name
        """Yield all devices, and again whenever a device's health changes."""
        self.watched.set()
        last_health: list[str] = []
        while context.is_active():
            unhealthy = {int(word) for word in self._health.read_text().split(",") if word}
            health = ["Unhealthy" if chip in unhealthy else "Healthy" for chip in range(self._count)]
            if health != last_health:
                devices = [self._messages.Device(ID=_id(chip), health=state) for chip, state in enumerate(health)]
                yield self._messages.ListAndWatchResponse(devices=devices)
                last_health = health
            time.sleep(0.1)

    def GetPreferredAllocation(self, request: Any, _context: Any) -> Any:  # noqa: N802  # the protocol's name
        """Return chips of one ring, if possible."""
        answer = self._messages.PreferredAllocationResponse()
        for container in request.container_requests:
            available, required = (
                [_chip(name) for name in names]
                for names in (container.available_deviceIDs, container.must_include_deviceIDs)
            )
            chips = preferred(sorted(available), required, container.allocation_size)
            answer.container_responses.add(deviceIDs=[_id(chip) for chip in chips])
        return answer

    def Allocate(self, request: Any, _context: Any) -> Any:  # noqa: N802  # the protocol's name
        """Return the environment and annotations of a container with its chips."""
        answer = self._messages.AllocateResponse()
        for container in request.container_requests:
            chips = sorted(_chip(name) for name in container.devices_ids)
            _say(f"allocated {chips}")
            answer.container_responses.add(
                envs={"ASCEND_VISIBLE_DEVICES": ",".join(map(str, chips)), "PNAS_TEST_NPU_SIMULATION": "1"},
                annotations={RESOURCE: ",".join(map(_id, chips))},
            )
        return answer

    def PreStartContainer(self, _request: Any, _context: Any) -> Any:  # noqa: N802  # the protocol's name
        """Do nothing: the kubelet never calls it."""
        return self._messages.PreStartContainerResponse()


def main() -> None:
    """Serve, and register again after each restart of the kubelet."""
    spec = json.loads(sys.argv[1])
    sys.path.insert(0, spec["protocol_folder"])
    messages, services = grpc.protos_and_services("api.proto")
    plugin = Plugin(messages, spec["count"], Path(spec["health"]))
    annotate = pod_annotations.Annotator(Path(spec["kubeconfig"]), spec["node"], spec["address"], RESOURCE)
    threading.Thread(target=annotate.run, daemon=True).start()
    while True:
        while not KUBELET_SOCKET.exists():
            time.sleep(0.1)
        kubelet = KUBELET_SOCKET.stat().st_ino
        server = _serve(plugin, services)
        try:
            _register(messages, services)
            # On a busy machine, the kubelet may give up connecting, and report it at once or only in its log.
            is_watched = plugin.watched.wait(WATCHED_WITHIN_S)
            while (
                is_watched and KUBELET_SOCKET.exists() and KUBELET_SOCKET.stat().st_ino == kubelet and SOCKET.exists()
            ):
                time.sleep(0.5)
        except grpc.RpcError as error:
            _say(f"not registered, trying again: {error}")
        server.stop(0)
        plugin.watched.clear()


def _serve(plugin: Plugin, services: Any) -> Any:
    SOCKET.unlink(missing_ok=True)
    server = grpc.server(futures.ThreadPoolExecutor(8))
    services.add_DevicePluginServicer_to_server(plugin, server)
    server.add_insecure_port(f"unix://{SOCKET}")
    server.start()
    return server


def _register(messages: Any, services: Any) -> None:
    with grpc.insecure_channel(f"unix://{KUBELET_SOCKET}") as channel:
        options = messages.DevicePluginOptions(get_preferred_allocation_available=True)
        request = messages.RegisterRequest(
            version=VERSION, endpoint=SOCKET.name, resource_name=RESOURCE, options=options
        )
        services.RegistrationStub(channel).Register(request, wait_for_ready=True, timeout=30)
    _say(f"registered {RESOURCE}, a simulation")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _id(chip: int) -> str:
    return f"Ascend910-{chip}"


def _chip(name: str) -> int:
    return int(name.rpartition("-")[2])


if __name__ == "__main__":
    main()
