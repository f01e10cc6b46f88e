"""A SIMULATION of Ascend's device plugin: it advertises NPUs that do not exist on the kubelet's real interface.

Run as `python -m tests.cluster.testbed.npus.device_plugin SPEC` where the kubelet's folders are the node's.
SPEC is JSON. The devices
that its `health` file names (`0,3`) are unhealthy. Containers get `ASCEND_VISIBLE_DEVICES`, which Ascend Docker Runtime
reads; `pod_annotations` tells of them on their pods.
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
KUBELET, OWN = FOLDER / "kubelet.sock", FOLDER / "ascend910-simulation.sock"
WATCHED_WITHIN_S = 15.0
RING = 4  # Atlas 800 (9000): chips 0-3 and 4-7 are connected by HCCS


def preferred(available: Sequence[int], wanted: Sequence[int], size: int) -> list[int]:
    """`size` of the `available` chips, `wanted` among them, all of one HCCS ring if one has enough.

    A ring that is partly taken goes first, so that whole rings stay for larger jobs.
    """
    rings = sorted({chip // RING for chip in available}, key=lambda ring: sum(c // RING == ring for c in available))
    for ring in rings:
        chips = [chip for chip in available if chip // RING == ring]
        if len(chips) >= size and set(wanted) <= set(chips):
            return sorted([*wanted, *(chip for chip in chips if chip not in wanted)][:size])
    by_ring = sorted(available, key=lambda chip: (rings.index(chip // RING), chip))
    return sorted([*wanted, *(chip for chip in by_ring if chip not in wanted)][:size])


class Plugin:
    """The service that the kubelet calls; `messages` are those of its own protocol file."""

    def __init__(self, messages: Any, count: int, health: Path) -> None:
        self._messages = messages
        self._count = count
        self._health = health
        self.watched = threading.Event()
        """The kubelet has come to see the devices."""

    def GetDevicePluginOptions(self, _request: Any, _context: Any) -> Any:  # noqa: N802  # the protocol's name
        """It has preferences."""
        return self._messages.DevicePluginOptions(get_preferred_allocation_available=True)

    def ListAndWatch(self, _request: Any, context: Any) -> Iterator[Any]:  # noqa: N802  # the protocol's name
        """All devices, and again whenever one's health changes."""
        self.watched.set()
        told: list[str] = []
        while context.is_active():
            unhealthy = {int(word) for word in self._health.read_text().split(",") if word}
            health = ["Unhealthy" if chip in unhealthy else "Healthy" for chip in range(self._count)]
            if health != told:
                devices = [self._messages.Device(ID=_id(chip), health=state) for chip, state in enumerate(health)]
                yield self._messages.ListAndWatchResponse(devices=devices)
                told = health
            time.sleep(0.1)

    def GetPreferredAllocation(self, request: Any, _context: Any) -> Any:  # noqa: N802  # the protocol's name
        """Chips of one ring, where that can be."""
        answer = self._messages.PreferredAllocationResponse()
        for one in request.container_requests:
            available, wanted = (
                [_chip(name) for name in names] for names in (one.available_deviceIDs, one.must_include_deviceIDs)
            )
            chips = preferred(sorted(available), wanted, one.allocation_size)
            answer.container_responses.add(deviceIDs=[_id(chip) for chip in chips])
        return answer

    def Allocate(self, request: Any, _context: Any) -> Any:  # noqa: N802  # the protocol's name
        """What a container is given with its chips."""
        answer = self._messages.AllocateResponse()
        for one in request.container_requests:
            chips = sorted(_chip(name) for name in one.devices_ids)
            _say(f"allocated {chips}")
            answer.container_responses.add(
                envs={"ASCEND_VISIBLE_DEVICES": ",".join(map(str, chips)), "PNAS_NPU_SIMULATION": "1"},
                annotations={RESOURCE: ",".join(map(_id, chips))},
            )
        return answer

    def PreStartContainer(self, _request: Any, _context: Any) -> Any:  # noqa: N802  # the protocol's name
        """Never asked for."""
        return self._messages.PreStartContainerResponse()


def main() -> None:
    """Serve, and register anew whenever the kubelet has begun anew."""
    spec = json.loads(sys.argv[1])
    sys.path.insert(0, spec["protocol_folder"])
    messages, services = grpc.protos_and_services("api.proto")
    plugin = Plugin(messages, spec["count"], Path(spec["health"]))
    annotate = pod_annotations.Annotator(Path(spec["kubeconfig"]), spec["node"], spec["address"], RESOURCE)
    threading.Thread(target=annotate.run, daemon=True).start()
    while True:
        while not KUBELET.exists():
            time.sleep(0.1)
        kubelet = KUBELET.stat().st_ino
        server = _serve(plugin, services)
        try:
            _register(messages, services)
            # It may give up connecting on a busy machine, and says so at once or to its own log alone.
            seen = plugin.watched.wait(WATCHED_WITHIN_S)
            while seen and KUBELET.exists() and KUBELET.stat().st_ino == kubelet and OWN.exists():
                time.sleep(0.5)
        except grpc.RpcError as error:
            _say(f"not registered, trying again: {error}")
        server.stop(0)
        plugin.watched.clear()


def _serve(plugin: Plugin, services: Any) -> Any:
    OWN.unlink(missing_ok=True)
    server = grpc.server(futures.ThreadPoolExecutor(8))
    services.add_DevicePluginServicer_to_server(plugin, server)
    server.add_insecure_port(f"unix://{OWN}")
    server.start()
    return server


def _register(messages: Any, services: Any) -> None:
    with grpc.insecure_channel(f"unix://{KUBELET}") as channel:
        options = messages.DevicePluginOptions(get_preferred_allocation_available=True)
        request = messages.RegisterRequest(version=VERSION, endpoint=OWN.name, resource_name=RESOURCE, options=options)
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
